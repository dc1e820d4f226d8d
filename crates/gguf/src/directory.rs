//! A model: the tensors of all its parts in one directory, the metadata of the first, and positional reads.

use std::io;
use std::path::{Path, PathBuf};

use crate::cursor::beginning;
use crate::{Error, Metadata, Part, Tensor, header, split};

/// An open GGUF model of one or more files.
#[derive(Debug)]
pub struct Gguf {
    version: u32,
    metadata: Metadata,
    parts: Vec<Part>,
    /// Part by part, each in file order.
    tensors: Vec<Tensor>,
    /// Places in `tensors`, by ascending name.
    by_name: Vec<u32>,
}

impl Gguf {
    /// Opens a file and reads its header; of a split model, any part opens all.
    ///
    /// The files stay open. Renaming over one is harmless: the open one is used.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, breaks GGUF's rules, or the parts do not belong together.
    pub fn open(path: &Path) -> Result<Gguf, Error> {
        match split::all_parts(path) {
            None => Gguf::whole(Part::open(path)?),
            Some(paths) => {
                let parts = (1..)
                    .zip(&paths)
                    .map(|(number, path)| Part::open(path).map_err(|error| name_missing_part(error, number, &paths)));
                Gguf::split(parts.collect::<Result<_, _>>()?)
            }
        }
    }

    /// Reads a whole file from memory; `name` stands for its path in errors.
    ///
    /// # Errors
    ///
    /// If the bytes break GGUF's rules, or are a part of a split model.
    pub fn parse(name: &str, bytes: Vec<u8>) -> Result<Gguf, Error> {
        Gguf::whole(Part::in_memory(Path::new(name), bytes))
    }

    fn whole(part: Part) -> Result<Gguf, Error> {
        let header = header::read(&part, 0)?;
        split::check_whole(part.path(), &header.metadata)?;
        Gguf::new(header.version, header.metadata, vec![part], header.tensors)
    }

    fn split(parts: Vec<Part>) -> Result<Gguf, Error> {
        let mut tensors = Vec::new();
        let mut first = None;
        for (index, part) in parts.iter().enumerate() {
            let header = header::read(part, index)?;
            split::check_part(part.path(), &header.metadata, index, parts.len())?;
            tensors.extend(header.tensors);
            first.get_or_insert((header.version, header.metadata));
        }
        let (version, metadata) = first.expect("a split model has two parts or more");
        split::check_tensors(parts[0].path(), &metadata, tensors.len())?;
        Gguf::new(version, metadata, parts, tensors)
    }

    fn new(version: u32, metadata: Metadata, parts: Vec<Part>, tensors: Vec<Tensor>) -> Result<Gguf, Error> {
        let mut by_name: Vec<u32> = (0..tensors.len() as u32).collect();
        by_name.sort_by(|&a, &b| tensors[a as usize].name.cmp(&tensors[b as usize].name));
        for pair in by_name.windows(2) {
            let (first, second) = (&tensors[pair[0] as usize], &tensors[pair[1] as usize]);
            if first.name == second.name {
                return Err(Error::DuplicateTensor {
                    file: parts[second.part].path().into(),
                    name: beginning(&second.name),
                    offset: second.offset,
                    first: parts[first.part].path().into(),
                    first_offset: first.offset,
                });
            }
        }
        Ok(Gguf { version, metadata, parts, tensors, by_name })
    }

    /// GGUF version of the file, 2 or 3 (of part 1).
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata (of part 1).
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The files, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The tensors, part by part in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.iter()
    }

    /// The tensor of that name, if there is one.
    pub fn find_tensor(&self, name: &str) -> Option<&Tensor> {
        let place =
            self.by_name.binary_search_by(|&place| self.tensors[place as usize].name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[place] as usize])
    }

    /// The tensor of that name.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        self.find_tensor(name).ok_or_else(|| Error::MissingTensor {
            file: self.parts[0].path().into(),
            name: name.into(),
            count: self.tensors.len(),
        })
    }

    /// Reads all bytes of a tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    ///
    /// # Panics
    ///
    /// If `out` is not [`Tensor::bytes`] long, or the tensor is of another model with more parts.
    pub fn read_tensor(&self, tensor: &Tensor, out: &mut [u8]) -> Result<(), Error> {
        assert_eq!(out.len(), tensor.bytes, "length of the buffer for tensor {:?}", tensor.name);
        self.read_at(tensor.part, tensor.offset, out)
    }

    /// Reads bytes from part `part` (of [`Gguf::parts`]) at `offset`.
    ///
    /// # Errors
    ///
    /// [`Error::Read`].
    ///
    /// # Panics
    ///
    /// If there is no such part.
    pub fn read_at(&self, part: usize, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.parts[part].read_at(offset, out)
    }
}

/// Says which part (from 1) it is that is not there, if others are.
fn name_missing_part(error: Error, number: usize, paths: &[PathBuf]) -> Error {
    match error {
        Error::File { file, action, source }
            if source.kind() == io::ErrorKind::NotFound && paths.iter().any(|path| path.exists()) =>
        {
            let said = format!("part {number} of {} is missing; all parts go into one folder", paths.len());
            Error::File { file, action, source: io::Error::new(io::ErrorKind::NotFound, said) }
        }
        error => error,
    }
}
