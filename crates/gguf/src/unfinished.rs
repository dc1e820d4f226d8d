//! Files that are not whole yet: their name, and who may write them. One writer at a time; what a killed one left is written over.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

const PREFIX: &str = ".";
const SUFFIX: &str = ".unfinished";

/// Where the file that will be `path` is while it is being written: in the same folder, hidden.
pub fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(PREFIX);
    name.push(path.file_name().unwrap_or_default());
    name.push(SUFFIX);
    path.with_file_name(name)
}

/// An empty file at [`unfinished_path`], for this process alone; it is gone when dropped.
pub(crate) fn create(path: &Path) -> io::Result<NamedTempFile> {
    let unfinished = unfinished_path(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(unfinished.file_name().unwrap_or_default()).rand_bytes(0);
    builder.make_in(folder, open_alone)
}

/// Opens or creates a file, makes sure that nobody else is writing it, and empties it.
fn open_alone(path: &Path) -> io::Result<File> {
    let busy = || io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it");
    let mut options = File::options();
    options.read(true).write(true);
    let (file, is_new) = match options.clone().create_new(true).open(path) {
        Ok(file) => (file, true),
        // Not emptied at once: another process may be writing it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match options.open(path) {
            Err(_) if path.symlink_metadata().is_err() => return Err(busy()), // it has just been finished
            file => (file?, false),
        },
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) if is_still(&file, path) => {}
        Ok(()) => return Err(busy()), // it has just been finished
        Err(TryLockError::WouldBlock) => return Err(busy()),
        Err(TryLockError::Error(_)) if is_new => {}
        Err(TryLockError::Error(_)) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let problem = format!("this file system has no locks: if nothing is writing {name:?}, remove it");
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, problem));
        }
    }
    file.set_len(0)?;
    Ok(file)
}

/// Whether a path still names an open file, and is no link to it.
#[cfg(unix)]
fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let named = path.symlink_metadata().map(inode);
    named.is_ok_and(|named| file.metadata().map(inode).is_ok_and(|open| open == named))
}

#[cfg(not(unix))]
fn is_still(_file: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_a_killed_run_left_is_written_over_and_what_another_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let unfinished = unfinished_path(&path);
        assert_eq!(unfinished, folder.path().join(".model.gguf.unfinished"));
        std::fs::write(&unfinished, "left behind").unwrap();
        let mut first = create(&path).unwrap();
        first.write_all(b"new").unwrap();
        assert_eq!(create(&path).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(std::fs::read(&unfinished).unwrap(), b"new");
        first.persist_noclobber(&path).unwrap();
        assert!(!unfinished.exists());
        drop(create(&path).unwrap());
        assert!(!unfinished.exists());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    #[cfg(unix)]
    fn a_link_is_not_followed_to_a_file_that_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("model.gguf"), folder.path().join("other.gguf"));
        std::fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, unfinished_path(&path)).unwrap();
        assert!(create(&path).is_err());
        assert_eq!(std::fs::read(&other).unwrap(), b"precious");
        std::fs::remove_file(&other).unwrap();
        assert!(create(&path).is_err());
        assert!(!other.exists());
    }
}
