//! Whether a file will fit, before hours or gigabytes are spent on it.

use crate::Error;
use std::path::Path;

/// Bytes that this user may still write where `path` lies or will lie; `None` where the system does not tell.
///
/// # Errors
/// The folder does not exist, or cannot be looked at.
pub fn free_bytes(path: &Path) -> Result<Option<u64>, Error> {
    let folder = folder_of(path);
    #[cfg(unix)]
    {
        let failed = |source| Error::Folder { folder: folder.into(), source };
        let system = rustix::fs::statvfs(folder).map_err(|errno| failed(errno.into()))?;
        // No blocks at all: a file system that does not know the call.
        Ok((system.f_blocks > 0).then(|| system.f_bavail.saturating_mul(system.f_frsize)))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        Ok(None)
    }
}

/// Fails if a file of `bytes` at `path` would not fit. It is written beside what stands there now, so that counts as taken; what a killed
/// run left unfinished is written over, so that counts as free.
///
/// # Errors
/// [`Error::Space`], and those of [`free_bytes`].
pub fn check_space(path: &Path, bytes: u64) -> Result<(), Error> {
    let left = std::fs::metadata(moce_gguf::unfinished_path(path)).map_or(0, |left| left.len());
    match free_bytes(path)?.map(|free| free.saturating_add(left)) {
        Some(free) if free < bytes => Err(Error::Space { folder: folder_of(path).into(), wanted: bytes, free }),
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_before_anything_is_written() {
        let path = std::env::temp_dir().join("model.gguf");
        check_space(&path, 1).unwrap();
        let message = check_space(&path, u64::MAX).unwrap_err().to_string();
        assert!(message.contains("18446744073.71 GB needed"), "{message}");
        let nowhere = check_space(Path::new("/no/such/folder/model.gguf"), 1).unwrap_err();
        assert!(matches!(nowhere, Error::Folder { .. }), "{nowhere}");
    }
}
