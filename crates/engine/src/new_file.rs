//! Files that are whole or not there: written under a temporary name in the same folder, renamed at the end. (Models, which are large,
//! have a rule of their own in moce-gguf: what a killed writer left is found again and written over.)

use std::io::{BufWriter, Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file that has its name only when [`NewFile::finish`] has succeeded; dropped before, it is gone.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    overwrite: bool,
    writer: BufWriter<NamedTempFile>,
}

impl NewFile {
    /// Begins a file. `overwrite`: one of that name gives way when this one is whole.
    ///
    /// # Errors
    /// The name is taken, or the folder cannot be written to.
    pub fn create(path: &Path, overwrite: bool) -> Result<NewFile> {
        if !overwrite && path.exists() {
            return Err(Error::new(ErrorKind::AlreadyExists, "exists already; give another name"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        // What a file of anyone's has, less the user's mask.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        Ok(NewFile { path: path.to_owned(), overwrite, writer: BufWriter::new(builder.tempfile_in(folder)?) })
    }

    /// A whole file of these bytes, in place of one that may be there.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
        let mut file = NewFile::create(path, true)?;
        file.write_all(contents)?;
        file.finish()
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// What was buffered cannot be written, or the name has been taken meanwhile.
    pub fn finish(self) -> Result<()> {
        let NewFile { path, overwrite, writer } = self;
        let file = writer.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        // Or after a power cut the name could belong to an empty file.
        file.as_file().sync_all()?;
        let renamed = if overwrite { file.persist(&path) } else { file.persist_noclobber(&path) };
        renamed.map(drop).map_err(|refused| refused.error)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there_and_gives_way_only_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        let mut half = NewFile::create(&path, false).unwrap();
        half.write_all(b"half").unwrap();
        half.flush().unwrap();
        assert!(!path.exists() && names() == 1);
        drop(half);
        assert_eq!(names(), 0);

        let (mut first, mut second) = (NewFile::create(&path, false).unwrap(), NewFile::create(&path, false).unwrap());
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        first.finish().unwrap();
        assert_eq!(second.finish().unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(NewFile::create(&path, false).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        NewFile::write_whole(&path, b"third").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"third");
        assert_eq!(names(), 1);
        #[cfg(unix)]
        {
            // As any file that this process makes.
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
            let other = folder.path().join("other");
            std::fs::write(&other, "").unwrap();
            assert_eq!(mode(&path), mode(&other));
        }
    }
}
