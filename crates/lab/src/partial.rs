//! Files of JSON lines that grow while long work is being done: a header that says what the work is, then a line a step.
//!
//! Until the end the file is called `NAME.partial`; a run that was broken off goes on where it stopped. Then it gets its own name, or gives
//! way to what the steps led to.

use crate::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// The first line of such a file: what the work is.
pub trait Header: Serialize + DeserializeOwned + PartialEq {
    /// The field that holds the version.
    const KIND: &'static str;
    /// The version that is written and read.
    const VERSION: u32;
}

/// A file that grows by a line a step.
pub struct PartialFile<H, L> {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    lines: PhantomData<(H, L)>,
}

impl<H: Header, L: Serialize + DeserializeOwned> PartialFile<H, L> {
    /// Begins the file, or goes on with `NAME.partial` if there is one: what that holds is returned. With `force` it is begun anew, and so it is
    /// if no step stands in it yet.
    /// A partial file beside a whole one comes from a run with `force` that was broken off, so it is gone on with too.
    ///
    /// # Errors
    /// The file exists alone and `force` is not given, the partial one belongs to other options or is being written by another run, or a
    /// file cannot be written.
    pub fn open(path: &Path, header: &H, force: bool) -> Result<(Self, Vec<L>), Error> {
        let mut partial = path.to_owned().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let error = |cause| Error::File { path: partial.clone(), cause };
        let is_whole = || path.exists() && !force;
        if is_whole() && !partial.exists() {
            return Err(Error::ResultsExist { path: path.to_owned() });
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&partial).map_err(error)?;
        // Held until the run ends, where the file system has locks: two runs on one file would mix their answers.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::ResultsInUse { path: partial });
        }
        let begun = if force { Vec::new() } else { whole_lines(&partial)? };
        if begun.is_empty() {
            if !force && !is_begun::<H>(&partial)? {
                return Err(Error::OtherResults { path: partial });
            }
            if is_whole() {
                return Err(Error::ResultsExist { path: path.to_owned() });
            }
            return PartialFile::begin(path, partial, file, header);
        }
        let (found, lines) = parse::<H, L>(&partial, &begun)?;
        if found != *header {
            return match lines.is_empty() {
                true if is_whole() => Err(Error::ResultsExist { path: path.to_owned() }),
                true => PartialFile::begin(path, partial, file, header),
                false => Err(Error::OtherResults { path: partial }),
            };
        }
        // A last line that was broken off is cut away; what is whole stays as it is.
        file.set_len(begun.len() as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(error)?;
        Ok((PartialFile { path: path.to_owned(), partial, file, lines: PhantomData }, lines))
    }

    fn begin(path: &Path, partial: PathBuf, file: File, header: &H) -> Result<(Self, Vec<L>), Error> {
        let mut file = PartialFile { path: path.to_owned(), partial, file, lines: PhantomData };
        let begun = file.file.set_len(0).and_then(|()| file.file.rewind());
        begun.map_err(|cause| Error::File { path: file.partial.clone(), cause })?;
        file.line(header)?;
        Ok((file, Vec::new()))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, line: &L) -> Result<(), Error> {
        self.line(line)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// It cannot be written or renamed.
    pub fn finish(self) -> Result<(), Error> {
        let error = |cause| Error::File { path: self.path.clone(), cause };
        self.file.sync_all().map_err(error)?;
        std::fs::rename(&self.partial, &self.path).map_err(error)
    }

    /// Deletes the file: what it led to is kept elsewhere.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn discard(self) -> Result<(), Error> {
        std::fs::remove_file(&self.partial).map_err(|cause| Error::File { path: self.partial, cause })
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let mut line = serde_json::to_string(value).expect("numbers and texts have a JSON form");
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|cause| Error::File { path: self.partial.clone(), cause })
    }
}

/// Reads a file, whole or partial. A last line without its end is left out.
pub(crate) fn read<H: Header, L: DeserializeOwned>(path: &Path) -> Result<(H, Vec<L>), Error> {
    parse(path, &whole_lines(path)?)
}

/// The bytes of a file up to its last line end, which may be none. What follows was broken off, perhaps within a character.
fn whole_lines(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = std::fs::read(path).map_err(|cause| Error::File { path: path.to_owned(), cause })?;
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    bytes.truncate(end);
    Ok(bytes)
}

/// Whether a file without a line end is empty or holds the beginning of a first line that was broken off, and not another program's bytes.
fn is_begun<H: Header>(path: &Path) -> Result<bool, Error> {
    let bytes = std::fs::read(path).map_err(|cause| Error::File { path: path.to_owned(), cause })?;
    let first = format!("{{\"{}\":", H::KIND);
    let common = bytes.len().min(first.len());
    Ok(bytes[..common] == first.as_bytes()[..common])
}

fn parse<H: Header, L: DeserializeOwned>(path: &Path, lines: &[u8]) -> Result<(H, Vec<L>), Error> {
    let wrong = |line: usize, why: String| Error::Results { path: path.to_owned(), line, why };
    let mut lines = lines.split_inclusive(|&byte| byte == b'\n').enumerate();
    let (_, first) = lines.next().ok_or_else(|| wrong(1, "no header".to_owned()))?;
    let no_header = |error: serde_json::Error| wrong(1, error.to_string());
    let fields: Value = serde_json::from_slice(first).map_err(no_header)?;
    match fields[H::KIND].as_u64() {
        Some(version) if version == u64::from(H::VERSION) => {}
        Some(version) => return Err(wrong(1, format!("version {version} where {} is known", H::VERSION))),
        None => return Err(wrong(1, format!("no field {}", H::KIND))),
    }
    let header = serde_json::from_value(fields).map_err(no_header)?;
    let lines =
        lines.map(|(index, line)| serde_json::from_slice(line).map_err(|error| wrong(index + 1, error.to_string())));
    Ok((header, lines.collect::<Result<_, _>>()?))
}
