//! `moce pack`: a model with each expert in one piece, in the kernel order of a named instruction set, with checksums.
//!
//! The byte layout is in docs/formats/packed.md; the header is written by [`moce_engine::packed`], which also reads it. Work is cut into
//! pieces of whole row groups, so that memory does not grow with the experts, and pieces are ordered on all cores while the last
//! ones are written.

use crate::pipeline::pipelined;
use crate::state::State;
use crate::{Error, Progress, disk};
use moce_engine::packed::{self, Checksums, Header, Layer};
use moce_engine::{ExpertMap, Isa, LayerCatalogue};
use moce_gguf::{Gguf, Tensor, TensorType, Writer, split};
use std::collections::HashSet;
use std::hash::Hasher as _;
use std::io::{self, Write};
use std::path::Path;
use twox_hash::xxhash3_64::Hasher;

/// Bytes of a piece of work, about.
const PIECE_BYTES: usize = 4 << 20;
/// Pieces of a matrix are cut at multiples of so many rows: every kernel order's groups divide it.
const PIECE_ROWS: usize = 16;

/// A packed model, not yet written.
pub struct Pack<'g> {
    source: &'g Gguf,
    state: State,
    map: ExpertMap,
    header: Header,
    writer: Writer,
}

/// Rows of one projection of one expert.
struct Piece {
    projection: usize,
    part: usize,
    offset: u64,
    rows: usize,
    bytes: usize,
    /// Zeros to write behind it; `None` if the projection goes on.
    padding: Option<usize>,
}

impl<'g> Pack<'g> {
    /// Plans the packed file of a model; nothing is written yet.
    ///
    /// # Errors
    /// The model is packed already, has no experts, or is none that moce runs.
    pub fn new(source: &'g Gguf, isa: Isa) -> Result<Pack<'g>, Error> {
        let file = || source.parts()[0].path().to_owned();
        if let Some(header) = Header::read(source)? {
            return Err(Error::AlreadyPacked { file: file(), isa: header.isa });
        }
        let state = State::of(source)?;
        let map = ExpertMap::of(source)?;
        if map.layers.is_empty() {
            return Err(Error::NoExperts { file: file() });
        }
        let header = Header {
            architecture: map.architecture.clone(),
            identity: map.identity,
            isa: isa.name().to_owned(),
            layers: map.layers.iter().map(|layer| packed_layer(layer, isa)).collect(),
        };
        let mut writer = Writer::new();
        // The file is whole; and its alignment is its own.
        for (key, value) in source.metadata().iter().filter(|(key, _)| !split::KEYS.contains(key)) {
            writer.set(key, value.clone())?;
        }
        writer.set("general.alignment", packed::ALIGNMENT as u32)?;
        header.set(&mut writer)?;
        let experts: HashSet<&str> = map.tensors.iter().map(String::as_str).collect();
        let mut dense = 0;
        for tensor in source.tensors().filter(|tensor| !experts.contains(tensor.name())) {
            writer.add_tensor(tensor.name(), tensor.tensor_type(), tensor.dims())?;
            dense += 1;
        }
        for layer in &header.layers {
            let (_, stride) = layer.starts().expect("the map's experts are whole quant blocks");
            writer.add_tensor(&layer.tensor(), TensorType::I8, &[stride, layer.count as usize])?;
        }
        writer.add_tensor(packed::CHECKSUMS, TensorType::I64, &[Checksums::count(dense, &header.layers)])?;
        Ok(Pack { source, state, map, header, writer })
    }

    /// The size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.writer.file_bytes()
    }

    /// How many experts it has.
    pub fn experts(&self) -> usize {
        self.map.layers.iter().map(|layer| layer.count).sum()
    }

    /// Writes the file; `force`: in place of one that is there. Whether there is room is looked at first.
    ///
    /// # Errors
    /// [`Error::OutputIsSource`], [`Error::Space`], [`Error::Changed`], [`Error::Stopped`], or what the system says. No half file is left
    /// behind.
    pub fn write(&self, path: &Path, force: bool, progress: &mut Progress<'_>) -> Result<(), Error> {
        // A packed file cannot be unpacked: the original would be lost.
        if is_part_of(self.source, path) {
            return Err(Error::OutputIsSource { file: path.into() });
        }
        disk::check_space(path, self.file_bytes())?;
        let header = packed::checksum(&self.writer.header());
        let mut sums = Checksums { header, dense: Vec::new(), experts: Vec::new() };
        let mut layers = self.map.layers.iter().zip(&self.header.layers).peekable();
        let (mut written, mut stopped) = (0, false);
        let mut advance = |bytes: usize| {
            written += bytes as u64;
            stopped = stopped || progress(written).is_break();
            if stopped { Err(io::Error::from(io::ErrorKind::Interrupted)) } else { Ok(()) }
        };
        let mut changed = Ok(());
        let data = |tensor: &Tensor, out: &mut dyn Write| {
            if tensor.name() == packed::CHECKSUMS {
                changed = self.state.check(self.source);
                if changed.is_err() {
                    return Err(io::Error::other("the source changed"));
                }
                return out.write_all(&sums.to_bytes());
            }
            match layers.next_if(|(_, layer)| layer.tensor() == tensor.name()) {
                Some((found, layer)) => self.write_experts(found, layer, out, &mut sums.experts, &mut advance),
                None => self.write_dense(tensor, out, &mut sums.dense, &mut advance),
            }
        };
        let outcome = if force { self.writer.replace(path, data) } else { self.writer.create(path, data) };
        match outcome {
            Err(_) if stopped => Err(Error::Stopped { file: path.into() }),
            Err(_) if changed.is_err() => changed,
            outcome => Ok(outcome?),
        }
    }

    /// A tensor as it was.
    fn write_dense(
        &self,
        tensor: &Tensor,
        out: &mut dyn Write,
        sums: &mut Vec<u64>,
        advance: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let found = self.source.tensor(tensor.name()).map_err(io::Error::other)?;
        let mut hash = Hasher::new();
        let make = |piece: usize, bytes: &mut Vec<u8>| {
            let start = piece * PIECE_BYTES;
            bytes.resize(PIECE_BYTES.min(found.bytes() - start), 0);
            self.source.read_at(found.part(), found.offset() + start as u64, bytes).map_err(io::Error::other)
        };
        pipelined(found.bytes().div_ceil(PIECE_BYTES), make, |_, bytes| {
            hash.write(bytes);
            out.write_all(bytes)?;
            advance(bytes.len())
        })?;
        sums.push(hash.finish());
        Ok(())
    }

    /// The experts of a layer, in order.
    fn write_experts(
        &self,
        found: &LayerCatalogue,
        layer: &Layer,
        out: &mut dyn Write,
        sums: &mut Vec<u64>,
        advance: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let pieces: Vec<Piece> = (0..found.count as u32).flat_map(|expert| pieces(found, expert)).collect();
        let mut hash = Hasher::new();
        let make = |index: usize, bytes: &mut Vec<u8>| {
            let piece = &pieces[index];
            let shape = &found.projections[piece.projection];
            bytes.resize(piece.bytes, 0);
            self.source.read_at(piece.part, piece.offset, bytes).map_err(io::Error::other)?;
            moce_engine::order(shape.format, piece.rows, shape.columns, layer.layouts[piece.projection], bytes);
            Ok(())
        };
        pipelined(pieces.len(), make, |index, bytes| {
            hash.write(bytes);
            out.write_all(bytes)?;
            if let Some(padding) = pieces[index].padding {
                sums.push(std::mem::replace(&mut hash, Hasher::new()).finish());
                out.write_all(&vec![0; padding])?;
            }
            advance(bytes.len())
        })
    }
}

/// Whether a path leads to a file of the model.
fn is_part_of(model: &Gguf, path: &Path) -> bool {
    let Ok(wanted) = path.canonicalize() else { return false };
    model.parts().iter().any(|part| part.path().canonicalize().is_ok_and(|part| part == wanted))
}

/// How a layer's experts will stand.
fn packed_layer(layer: &LayerCatalogue, isa: Isa) -> Layer {
    let [gate, _, _] = &layer.projections;
    let formats = layer.projections.map(|projection| projection.format);
    Layer {
        block: layer.block as u32,
        count: layer.count as u32,
        hidden: gate.columns as u32,
        width: gate.rows as u32,
        formats,
        layouts: formats.map(|format| isa.layout(format)),
    }
}

/// The pieces of an expert, in the order of the packed file.
fn pieces(layer: &LayerCatalogue, expert: u32) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (projection, (shape, slice)) in layer.projections.iter().zip(layer.slices(expert)).enumerate() {
        let row_bytes = shape.bytes / shape.rows;
        let rows_at_once = (PIECE_BYTES / row_bytes / PIECE_ROWS).max(1) * PIECE_ROWS;
        for first in (0..shape.rows).step_by(rows_at_once) {
            let rows = rows_at_once.min(shape.rows - first);
            let is_last = first + rows == shape.rows;
            pieces.push(Piece {
                projection,
                part: slice.file,
                offset: slice.offset + (first * row_bytes) as u64,
                rows,
                bytes: rows * row_bytes,
                padding: is_last.then(|| shape.bytes.next_multiple_of(packed::ALIGNMENT) - shape.bytes),
            });
        }
    }
    pieces
}
