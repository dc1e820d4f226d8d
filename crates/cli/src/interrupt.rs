//! Ctrl-C: the first asks the command to finish cleanly, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status after Ctrl-C.
pub(crate) const EXIT_STATUS: u8 = 130;

static HAPPENED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C is noted instead of ending the program.
pub(crate) fn listen() {
    // Fails only if a handler exists already; then the default stays, which is to end.
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
