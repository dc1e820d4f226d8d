//! Writes GGUF version 3: first the metadata and the tensors' shapes are said, then the data is streamed, tensor by
//! tensor, so that no more than the header is ever in memory.
//!
//! A file appears under its name only when it is whole: it is written beside it, under the name that `unfinished` gives, and
//! renamed. What a killed run left under that name is written over by the next one.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::{Path, is_separator};

use crate::{Error, Gguf, Tensor, TensorType, Value, encode, header, limits, split, tensor, unfinished};

/// Bytes collected before they go to the file, so that data may come in small pieces.
const BUFFER_BYTES: usize = 1 << 20;

/// A file to be written.
#[derive(Clone, Debug)]
pub struct Writer {
    entries: Vec<(String, Value)>,
    /// Offsets count from the start of the data.
    tensors: Vec<Tensor>,
    /// See [`limits::INNER_ARRAYS`].
    inner_arrays: usize,
    names: HashSet<String>,
    alignment: u64,
    /// Size of the header without the zeros after it.
    header_bytes: u64,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer::new()
    }
}

impl Writer {
    /// A file without metadata and tensors, alignment 32.
    pub fn new() -> Writer {
        let empty = encode::header(&[], &[], 1).len() as u64;
        Writer {
            entries: Vec::new(),
            tensors: Vec::new(),
            inner_arrays: 0,
            names: HashSet::new(),
            alignment: header::DEFAULT_ALIGNMENT,
            header_bytes: empty,
        }
    }

    /// Sets a metadata key: at its place if it is there already, else at the end.
    ///
    /// `general.alignment` also sets the alignment of the data; it can be set before the first tensor only.
    ///
    /// # Errors
    ///
    /// [`Error::Unwritable`] for an empty or too long key, arrays nested too deep or too many of them, an alignment that cannot be, more
    /// keys or a larger header than [`limits`] allows.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<(), Error> {
        let value = value.into();
        let what = || format!("key {key:?}");
        check_name(what, key)?;
        if let Value::Array(array) = &value
            && !encode::depth_fits(array, 1)
        {
            let expected = format!("at most {} arrays within each other", limits::ARRAY_DEPTH);
            return Err(unwritable(what, expected, "more"));
        }
        let alignment = if key == header::ALIGNMENT_KEY { self.check_alignment(&value)? } else { self.alignment };

        let place = self.entries.iter().position(|(other, _)| other == key);
        if place.is_none() && self.entries.len() == limits::KEYS {
            return Err(unwritable(what, format!("at most {} keys", limits::KEYS), "one more"));
        }
        let old = place.map(|place| &self.entries[place]);
        let others = self.inner_arrays - old.map_or(0, |(_, value)| encode::inner_arrays(value));
        let inner_arrays = others + encode::inner_arrays(&value);
        if inner_arrays > limits::INNER_ARRAYS {
            let expected = format!("at most {} arrays within others", limits::INNER_ARRAYS);
            return Err(unwritable(what, expected, inner_arrays.to_string()));
        }
        let before = old.map_or(0, |(key, value)| entry_bytes(key, value));
        self.grow_header(what, before, entry_bytes(key, &value))?;
        (self.alignment, self.inner_arrays) = (alignment, inner_arrays);
        match place {
            Some(place) => self.entries[place].1 = value,
            None => self.entries.push((key.into(), value)),
        }
        Ok(())
    }

    /// The value that a metadata key was set to.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(other, _)| other == key).map(|(_, value)| value)
    }

    /// Adds a tensor after those already there; `dims` innermost first.
    ///
    /// # Errors
    ///
    /// [`Error::Unwritable`] for a name that is empty, too long or taken, a shape that cannot be, more tensors or a larger header than
    /// [`limits`] allows.
    pub fn add_tensor(&mut self, name: &str, tensor_type: TensorType, dims: &[usize]) -> Result<(), Error> {
        let what = || format!("tensor {name:?}");
        check_name(what, name)?;
        if self.names.contains(name) {
            return Err(unwritable(what, "each name once", "it again"));
        }
        if self.tensors.len() == limits::TENSORS {
            return Err(unwritable(what, format!("at most {} tensors", limits::TENSORS), "one more"));
        }
        let wide: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
        let bytes = tensor::shape_bytes(tensor_type, &wide).map_err(|bad| unwritable(what, bad.expected, bad.found))?;
        let offset = self.data_bytes();
        let end =
            offset.checked_add(bytes as u64).and_then(|end| end.checked_add(limits::HEADER_BYTES + self.alignment));
        if end.is_none_or(|end| end > i64::MAX as u64) {
            return Err(unwritable(what, format!("a file of at most {} bytes", i64::MAX), format!("{bytes} more")));
        }
        let mut sizes = [1; limits::DIMS];
        sizes[..dims.len()].copy_from_slice(dims);
        let tensor =
            Tensor { name: name.into(), tensor_type, dims: sizes, dim_count: dims.len(), part: 0, offset, bytes };
        let mut encoded = Vec::new();
        encode::tensor_entry(&mut encoded, &tensor);
        self.grow_header(what, 0, encoded.len() as u64)?;
        self.names.insert(name.into());
        self.tensors.push(tensor);
        Ok(())
    }

    /// Sets every metadata key of `model`, and adds every tensor. What a part of a split model says of the parts is left out: this is one
    /// file.
    ///
    /// # Errors
    ///
    /// As [`Writer::set`] and [`Writer::add_tensor`].
    pub fn copy_from(&mut self, model: &Gguf) -> Result<(), Error> {
        let is_split = model.parts().len() > 1;
        for (key, value) in model.metadata().iter().filter(|(key, _)| !is_split || !split::KEYS.contains(key)) {
            self.set(key, value.clone())?;
        }
        model.tensors().try_for_each(|tensor| self.add_tensor(tensor.name(), tensor.tensor_type(), tensor.dims()))
    }

    /// The tensors as the file's reader will see them: offsets count from the start of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor> + '_ {
        let data_start = self.data_start();
        self.tensors.iter().map(move |tensor| Tensor { offset: data_start + tensor.offset, ..tensor.clone() })
    }

    /// The bytes of the file before the first tensor's, the zeros at the end included.
    pub fn header(&self) -> Vec<u8> {
        encode::header(&self.entries, &self.tensors, self.alignment)
    }

    /// The size of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.data_start() + self.data_bytes()
    }

    /// Writes a new file; `data` writes the bytes of each tensor in turn, exactly [`Tensor::bytes`].
    ///
    /// # Errors
    ///
    /// [`Error::File`] if `path` exists, is named like a part of a split model though the file is none, or the system refuses;
    /// [`Error::TensorData`] if `data` fails or writes another number of bytes. No file is left behind.
    pub fn create(
        &self,
        path: &Path,
        data: impl FnMut(&Tensor, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        if path.symlink_metadata().is_ok() {
            let source = io::ErrorKind::AlreadyExists.into();
            return Err(Error::File { file: path.into(), action: "create", source });
        }
        self.write_file(path, data, |file| file.persist_noclobber(path))
    }

    /// As [`Writer::create`], but takes the place of a file that is already there.
    ///
    /// # Errors
    ///
    /// As [`Writer::create`]; the old file is untouched then.
    pub fn replace(
        &self,
        path: &Path,
        data: impl FnMut(&Tensor, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.write_file(path, data, |file| file.persist(path))
    }

    /// Writes into memory.
    ///
    /// # Errors
    ///
    /// [`Error::TensorData`] as [`Writer::create`].
    pub fn to_bytes(&self, data: impl FnMut(&Tensor, &mut dyn Write) -> io::Result<()>) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        self.write(Path::new("(memory)"), &mut out, data)?;
        Ok(out)
    }

    fn write_file(
        &self,
        path: &Path,
        data: impl FnMut(&Tensor, &mut dyn Write) -> io::Result<()>,
        persist: impl FnOnce(tempfile::NamedTempFile) -> Result<std::fs::File, tempfile::PersistError>,
    ) -> Result<(), Error> {
        let failed = |action| move |source| Error::File { file: path.into(), action, source };
        // Before everything is written, not when it is to be renamed.
        let name = path.as_os_str().as_encoded_bytes();
        let end = name.strip_suffix(b".").unwrap_or(name).last();
        let ends_as_folder = end.is_some_and(|&end| is_separator(end.into()));
        if ends_as_folder || path.file_name().is_none() || path.is_dir() {
            return Err(failed("create")(io::ErrorKind::IsADirectory.into()));
        }
        if path.symlink_metadata().is_ok_and(|found| !found.is_file() && !found.is_symlink()) {
            return Err(failed("replace")(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
        }
        if split::all_parts(path).is_some() && self.get(split::COUNT_KEY).is_none() {
            return Err(failed("create")(io::Error::new(
                io::ErrorKind::InvalidInput,
                "by its name it would be a part of a split model, and it is a whole one",
            )));
        }
        let file = unfinished::create(path).map_err(failed("create"))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        self.write(path, &mut out, data)?;
        let file = out.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        file.as_file().sync_all().map_err(failed("write"))?;
        persist(file).map_err(|error| failed("create")(error.error))?;
        Ok(())
    }

    fn write(
        &self,
        path: &Path,
        out: &mut dyn Write,
        mut data: impl FnMut(&Tensor, &mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let failed = |source| Error::File { file: path.into(), action: "write", source };
        out.write_all(&self.header()).map_err(failed)?;
        for tensor in self.tensors() {
            let mut sink = Sink { out, left: tensor.bytes as u64 };
            let bad = |source| Error::TensorData { file: path.into(), name: tensor.name.clone(), source };
            data(&tensor, &mut sink).map_err(bad)?;
            if sink.left > 0 {
                let problem = format!("expected {} bytes, found {}", tensor.bytes, tensor.bytes as u64 - sink.left);
                return Err(bad(io::Error::new(io::ErrorKind::UnexpectedEof, problem)));
            }
            let padding = (tensor.bytes as u64).next_multiple_of(self.alignment) - tensor.bytes as u64;
            io::copy(&mut io::Read::take(io::repeat(0), padding), out).map_err(failed)?;
        }
        Ok(())
    }

    fn data_start(&self) -> u64 {
        self.header_bytes.next_multiple_of(self.alignment)
    }

    /// Bytes of the data, each tensor padded; also where the next tensor begins.
    fn data_bytes(&self) -> u64 {
        let last = self.tensors.last();
        last.map_or(0, |tensor| (tensor.offset + tensor.bytes as u64).next_multiple_of(self.alignment))
    }

    fn check_alignment(&self, value: &Value) -> Result<u64, Error> {
        let what = || format!("key {:?}", header::ALIGNMENT_KEY);
        let Some(alignment) = header::check_alignment(value) else {
            return Err(unwritable(what, format!("a power of two up to {}", limits::ALIGNMENT), value.describe()));
        };
        if alignment != self.alignment && !self.tensors.is_empty() {
            return Err(unwritable(
                what,
                "to be set before the first tensor",
                format!("{} tensors", self.tensors.len()),
            ));
        }
        Ok(alignment)
    }

    fn grow_header(&mut self, what: impl Fn() -> String, before: u64, after: u64) -> Result<(), Error> {
        let bytes = self.header_bytes - before + after;
        if bytes > limits::HEADER_BYTES {
            return Err(unwritable(
                what,
                format!("a header of at most {} bytes", limits::HEADER_BYTES),
                bytes.to_string(),
            ));
        }
        self.header_bytes = bytes;
        Ok(())
    }
}

/// Passes on no more than the bytes of one tensor.
struct Sink<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            let problem = format!("expected {} more bytes, found {}", self.left, bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let count = self.out.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // the file is flushed once, when it is whole
    }
}

fn entry_bytes(key: &str, value: &Value) -> u64 {
    let mut encoded = Vec::new();
    encode::entry(&mut encoded, key, value);
    encoded.len() as u64
}

fn check_name(what: impl Fn() -> String, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() as u64 > limits::NAME_BYTES {
        return Err(unwritable(what, format!("a name of 1 to {} bytes", limits::NAME_BYTES), name.len().to_string()));
    }
    Ok(())
}

fn unwritable(what: impl Fn() -> String, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::Unwritable { what: what(), expected: expected.into(), found: found.into() }
}
