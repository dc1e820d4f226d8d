//! Ctrl-C: the first asks the command to finish cleanly, the second ends the program at once.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status after Ctrl-C.
pub(crate) const EXIT_STATUS: u8 = 130;

static HAPPENED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C is noted instead of ending the program. A second call changes nothing.
pub(crate) fn listen() {
    // Fails where it listens already, and where the system refuses: then the default stays, which is to end.
    let _ = ctrlc::set_handler(|| {
        if HAPPENED.swap(true, Ordering::Relaxed) {
            std::process::exit(EXIT_STATUS.into());
        }
    });
}

/// Whether Ctrl-C was pressed since [`listen`].
pub(crate) fn happened() -> bool {
    HAPPENED.load(Ordering::Relaxed)
}

/// Writes as long as nobody pressed Ctrl-C, so that a file is left as it was.
pub(crate) struct Writer<W>(pub(crate) W);

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Not `ErrorKind::Interrupted`, after which writing is tried again.
        if happened() { Err(std::io::Error::other("interrupted")) } else { self.0.write(bytes) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// What to say of work that was interrupted and keeps what it has done; `force`: it was begun anew.
pub(crate) fn resumable(error: moce_lab::Error, force: bool) -> anyhow::Error {
    let without = if force { " without --force" } else { "" };
    match error {
        moce_lab::Error::Interrupted => {
            anyhow::anyhow!("interrupted; the same command{without} goes on where it stopped")
        }
        error => error.into(),
    }
}
