//! One file of a model, kept open, read by position. Never mapped: a live mapping slows direct reads of the same file on
//! some systems, and hides I/O errors in page faults.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use crate::Error;

/// One file: the only one, or a part of a split model.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    bytes: u64,
    /// `None` for bytes in memory.
    metadata: Option<Metadata>,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    File(File),
    Memory(Vec<u8>),
}

impl Part {
    pub(crate) fn open(path: &Path) -> Result<Part, Error> {
        let failed = |source| Error::File { file: path.into(), action: "open", source };
        // Looked at before it is opened: opening a FIFO would wait for a writer.
        let regular = |metadata: Metadata| {
            let refused = |kind, why: &str| Err(io::Error::new(kind, why));
            match metadata.file_type() {
                kind if kind.is_file() => Ok(metadata),
                kind if kind.is_dir() => {
                    refused(io::ErrorKind::IsADirectory, "this is a folder; a model is a .gguf file in it")
                }
                _ => refused(io::ErrorKind::InvalidInput, "not a regular file"),
            }
        };
        std::fs::metadata(path).and_then(regular).map_err(failed)?;
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().and_then(regular).map_err(failed)?;
        let (path, bytes) = (path.into(), metadata.len());
        Ok(Part { path, bytes, metadata: Some(metadata), storage: Storage::File(file) })
    }

    pub(crate) fn in_memory(name: &Path, bytes: Vec<u8>) -> Part {
        Part { path: name.into(), bytes: bytes.len() as u64, metadata: None, storage: Storage::Memory(bytes) }
    }

    /// Where it was opened; of bytes in memory, the name that they were given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The open file, for who reads it by other means or watches it; `None` for bytes in memory.
    pub fn file(&self) -> Option<&File> {
        match &self.storage {
            Storage::File(file) => Some(file),
            Storage::Memory(_) => None,
        }
    }

    /// What the system said of the file when it was opened, before anything of it was read; `None` for bytes in memory.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Fills `out` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] if the file ends before `out` is full, or the system refuses.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let mut got = 0;
        let mut read = || {
            while got < out.len() {
                let position = offset.checked_add(got as u64).ok_or(io::ErrorKind::InvalidInput)?;
                match self.storage.read_at(position, &mut out[got..]) {
                    Ok(0) => return Ok(false),
                    Ok(count) => got += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(true)
        };
        let source = match read() {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        Err(Error::Read { file: self.path.clone(), offset, wanted: out.len() as u64, got: got as u64, source })
    }
}

impl Storage {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        match self {
            #[cfg(unix)]
            Storage::File(file) => std::os::unix::fs::FileExt::read_at(file, out, offset),
            #[cfg(windows)]
            Storage::File(file) => std::os::windows::fs::FileExt::seek_read(file, out, offset),
            Storage::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)).unwrap_or(&[]);
                let count = rest.len().min(out.len());
                out[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Part;
    use std::path::Path;

    #[test]
    fn short_reads_say_where_and_how_much() {
        let part = Part::in_memory(Path::new("m.gguf"), vec![1, 2, 3, 4]);
        let mut out = [0; 3];
        part.read_at(1, &mut out).unwrap();
        assert_eq!(out, [2, 3, 4]);
        assert_eq!(
            part.read_at(2, &mut out).unwrap_err().to_string(),
            "m.gguf: read at byte 2: wanted 3 bytes, got 2 (end of file)"
        );
        assert!(part.read_at(u64::MAX, &mut out).unwrap_err().to_string().contains("got 0"));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let refused = |path: &Path| Part::open(path).unwrap_err().to_string();
        let folder = refused(&std::env::temp_dir());
        assert!(folder.ends_with("cannot open: this is a folder; a model is a .gguf file in it"), "{folder}");
        #[cfg(unix)]
        assert_eq!(refused(Path::new("/dev/null")), "/dev/null: cannot open: not a regular file");
    }
}
