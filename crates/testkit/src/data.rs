//! Test data that is not in the repository: the folder `$MOCE_DATA`, by default `../shared/data` beside the checkout.
//!
//! Without the folder, tests that need it are skipped and say so on standard error. With `MOCE_DATA` set nothing is skipped.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The path of a file or folder in the data folder, such as `wikitext2/wiki.test.raw`. `None`, and a line on standard error that
/// begins with `skipped:`, if it is missing; the caller then returns.
///
/// # Panics
///
/// If it is missing although `MOCE_DATA` is set.
pub fn data_path(name: &str) -> Option<PathBuf> {
    let path = folder().join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("MOCE_DATA").is_none(), "MOCE_DATA is set, but {} is missing", path.display());
    skipped(&format!("no {name} (set MOCE_DATA to the folder of test data)"));
    None
}

/// The bytes of a file in the data folder; of `NAME.xz`, unpacked, where there is only that.
///
/// # Panics
///
/// As [`data_path`], and if the file cannot be read.
pub fn data_bytes(name: &str) -> Option<Vec<u8>> {
    if folder().join(name).exists() {
        let path = data_path(name)?;
        return Some(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    }
    let path = data_path(&format!("{name}.xz"))?;
    Some(unpack(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Says that a test is skipped, past the capture of test output, so that a run shows how many were.
pub fn skipped(why: &str) {
    // Nothing to do where standard error is closed.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

fn folder() -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("MOCE_DATA").map_or_else(|| checkout.join("../shared/data"), PathBuf::from)
}

fn unpack(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(std::fs::File::open(path)?, true).read_to_end(&mut bytes)?;
    Ok(bytes)
}
