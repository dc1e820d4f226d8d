//! `moce verify`: reads every byte of a model once and says what is damaged: bytes that cannot be read, weights or scales that are no
//! finite numbers, and in packed models everything that its checksums tell.
//!
//! The structure (headers, sizes, shapes) has been checked when the file was opened. Damage is listed, not stopped at.

use crate::pipeline::pipelined;
use crate::state::State;
use crate::{Error, Progress};
use moce_engine::packed::{self, Checksums, Header};
use moce_gguf::{Gguf, TensorType};
use std::hash::Hasher as _;
use std::path::PathBuf;
use twox_hash::xxhash3_64::Hasher;

/// Bytes of a piece of work, about: a whole number of every format's quant blocks, cut to that below.
const PIECE_BYTES: usize = 4 << 20;
/// Most damaged places that are listed.
const LISTED: usize = 100;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Bytes read.
    pub bytes: u64,
    /// Checksums compared.
    pub checksums: usize,
    /// Damaged places.
    pub damaged: usize,
    /// The first of them, at most 100, in the order of the file.
    pub damage: Vec<Damage>,
}

/// A damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it the damage is, or the range that it is in begins.
    pub offset: u64,
    /// What is damaged, and how.
    pub what: String,
}

/// A range of a file, and what is known of its bytes.
struct Span {
    part: usize,
    offset: u64,
    bytes: u64,
    name: String,
    known: Known,
    checksum: Option<u64>,
}

enum Known {
    Nothing,
    Zeros,
    Weights(TensorType),
}

/// Reads every byte of an opened model.
///
/// # Errors
/// The header of a packed model contradicts itself, the model changed while it was read, or `progress` stopped the work.
pub fn verify(gguf: &Gguf, progress: &mut Progress<'_>) -> Result<Verification, Error> {
    let state = State::of(gguf)?;
    let spans = spans(gguf)?;
    let mut found = Verification::default();
    for span in &spans {
        let block_bytes = match span.known {
            Known::Weights(tensor_type) => tensor_type.block_bytes(),
            Known::Nothing | Known::Zeros => 1,
        };
        let piece_bytes = (PIECE_BYTES / block_bytes * block_bytes) as u64;
        let length = |piece: usize| piece_bytes.min(span.bytes - piece as u64 * piece_bytes) as usize;
        let start = |piece: usize| span.offset + piece as u64 * piece_bytes;
        let make = |piece: usize, bytes: &mut Vec<u8>| {
            bytes.resize(length(piece), 0);
            if gguf.read_at(span.part, start(piece), bytes).is_err() {
                bytes.clear(); // read again below, for the message
            }
            Ok(())
        };
        let mut hash = span.checksum.map(|_| Hasher::new());
        let mut problem = None;
        pipelined(span.bytes.div_ceil(piece_bytes) as usize, make, |piece, bytes| {
            let mut again = vec![0; if bytes.is_empty() { length(piece) } else { 0 }];
            let bytes = match gguf.read_at(span.part, start(piece), &mut again) {
                _ if !bytes.is_empty() => bytes,
                Ok(()) => &again,
                Err(error) => {
                    hash = None;
                    problem.get_or_insert((start(piece), format!("{}: {error}", span.name)));
                    bytes
                }
            };
            if let Some(hash) = &mut hash {
                hash.write(bytes);
            }
            if let Some((at, what)) = span.known.contradiction(bytes) {
                problem.get_or_insert((start(piece) + at as u64, format!("{}: {what}", span.name)));
            }
            found.bytes += length(piece) as u64;
            if progress(found.bytes).is_break() { Err(Error::Interrupted) } else { Ok(()) }
        })?;
        if let (Some(expected), Some(hash)) = (span.checksum, hash) {
            found.checksums += 1;
            if hash.finish() != expected {
                // Says more than a value that is not finite.
                problem = Some((span.offset, format!("{}: {} bytes with another checksum", span.name, span.bytes)));
            }
        }
        if let Some((offset, what)) = problem {
            found.damaged += 1;
            if found.damage.len() < LISTED {
                found.damage.push(Damage { file: gguf.parts()[span.part].path().to_owned(), offset, what });
            }
        }
    }
    if let Some(damage) = wrong_length(gguf, &spans)? {
        found.damaged += 1;
        found.damage.truncate(LISTED - 1);
        found.damage.push(damage);
    }
    state.check(gguf)?;
    Ok(found)
}

/// A packed file ends with the zeros behind its last tensor.
fn wrong_length(gguf: &Gguf, spans: &[Span]) -> Result<Option<Damage>, Error> {
    if Header::read(gguf)?.is_none() {
        return Ok(None);
    }
    let tensors = spans.iter().filter(|span| span.checksum.is_some() || matches!(span.known, Known::Nothing));
    let end = tensors.map(|span| span.offset + span.bytes).max().unwrap_or(0);
    let (expected, found) = (end.next_multiple_of(packed::ALIGNMENT as u64), gguf.parts()[0].bytes());
    let what = format!("the file has {found} bytes, expected {expected}");
    let file = gguf.parts()[0].path().to_owned();
    Ok((found != expected).then(|| Damage { file, offset: found.min(expected), what }))
}

impl Known {
    /// The first byte that cannot be right.
    fn contradiction(&self, bytes: &[u8]) -> Option<(usize, &'static str)> {
        match self {
            Known::Nothing => None,
            Known::Zeros => Some((bytes.iter().position(|&byte| byte != 0)?, "a byte that should be 0")),
            Known::Weights(tensor_type) => Some((not_finite(*tensor_type, bytes)?, "a value that is not finite")),
        }
    }
}

/// Where the first float that is not finite stands: a weight of a float format, a scale of a quantised one.
fn not_finite(tensor_type: TensorType, bytes: &[u8]) -> Option<usize> {
    // All bits of the exponent, in the upper byte or two of a little-endian float.
    let f16 = |bytes: &[u8]| bytes[1] & 0x7c == 0x7c;
    let wide = |bytes: &[u8]| bytes[1] & 0x7f == 0x7f && bytes[0] & 0x80 != 0;
    let scales: &[usize] = match tensor_type {
        TensorType::F32 => return Some(4 * bytes.as_chunks::<4>().0.iter().position(|x| wide(&x[2..]))?),
        TensorType::BF16 => return Some(2 * bytes.as_chunks::<2>().0.iter().position(|x| wide(x))?),
        TensorType::F16 | TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::IQ4_NL | TensorType::IQ4_XS => &[0],
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        TensorType::Q6_K => &[208],
        _ => return None,
    };
    let block_bytes = tensor_type.block_bytes();
    let blocks = bytes.chunks_exact(block_bytes).enumerate();
    let mut wrong = blocks.filter_map(|(index, block)| {
        let scale = scales.iter().find(|&&scale| f16(&block[scale..scale + 2]))?;
        Some(index * block_bytes + scale)
    });
    wrong.next()
}

/// Every byte of every part once, in order.
fn spans(gguf: &Gguf) -> Result<Vec<Span>, Error> {
    let packed = Header::read(gguf)?;
    let mut known = match &packed {
        None => gguf.tensors().map(tensor_span).collect(),
        Some(header) => packed_spans(gguf, header)?,
    };
    known.sort_by_key(|span| (span.part, span.offset));
    let mut spans = Vec::with_capacity(2 * known.len());
    let mut known = known.into_iter().peekable();
    for (part, file) in gguf.parts().iter().enumerate() {
        let mut end = 0;
        let gap = |spans: &mut Vec<Span>, until: u64, end: u64, header: bool| {
            let (name, known) = match (header, &packed) {
                (true, _) => ("header", Known::Nothing),
                (false, Some(_)) => ("between tensors", Known::Zeros),
                (false, None) => ("between tensors", Known::Nothing),
            };
            if until > end {
                spans.push(Span { part, offset: end, bytes: until - end, name: name.into(), known, checksum: None });
            }
        };
        while let Some(span) = known.next_if(|span| span.part == part) {
            gap(&mut spans, span.offset, end, end == 0);
            end = span.offset + span.bytes;
            spans.push(span);
        }
        gap(&mut spans, file.bytes(), end, end == 0);
    }
    Ok(spans)
}

fn tensor_span(tensor: &moce_gguf::Tensor) -> Span {
    Span {
        part: tensor.part(),
        offset: tensor.offset(),
        bytes: tensor.bytes() as u64,
        name: format!("tensor {:?}", tensor.name()),
        known: Known::Weights(tensor.tensor_type()),
        checksum: None,
    }
}

/// The spans of a packed model that have checksums.
fn packed_spans(gguf: &Gguf, header: &Header) -> Result<Vec<Span>, Error> {
    let sums = Checksums::read(gguf, header)?;
    let dense = header.dense(gguf).zip(&sums.dense);
    let mut spans: Vec<Span> =
        dense.map(|(tensor, &sum)| Span { checksum: Some(sum), ..tensor_span(tensor) }).collect();
    let names = header.layers.iter().flat_map(|layer| {
        let experts = (0..layer.count).flat_map(|expert| ["gate", "up", "down"].map(|projection| (expert, projection)));
        experts.map(move |(expert, projection)| format!("layer {}, expert {expert}, {projection}", layer.block))
    });
    for ((slice, &checksum), name) in header.slices(gguf)?.iter().zip(&sums.experts).zip(names) {
        let (part, offset, bytes) = (slice.file, slice.offset, slice.bytes as u64);
        spans.push(Span { part, offset, bytes, name, known: Known::Nothing, checksum: Some(checksum) });
    }
    spans.push(Span { known: Known::Nothing, ..tensor_span(gguf.tensor(packed::CHECKSUMS)?) });
    let data = spans.iter().map(|span| span.offset).min().unwrap_or(0);
    spans.push(Span {
        part: 0,
        offset: 0,
        bytes: data,
        name: "header".into(),
        known: Known::Nothing,
        checksum: Some(sums.header),
    });
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_quant::Format;

    #[test]
    fn values_that_are_not_finite_are_found_where_they_are() {
        for format in Format::ALL {
            let tensor_type = *TensorType::ALL.iter().find(|known| known.format() == Some(format)).unwrap();
            let values: Vec<f32> = (0..256).map(|i| (i as f32 - 100.0) * 0.01).collect();
            let mut bytes = vec![0; format.row_bytes(256).unwrap()];
            moce_quant::encode(format, &values, &mut bytes);
            assert_eq!(not_finite(tensor_type, &bytes), None, "{tensor_type}");
            // A NaN as the scale of the second block (the second value of a float format).
            let at = format.block_bytes();
            let nan: &[u8] = match format {
                Format::F32 => &[0, 0, 0xc0, 0x7f],
                Format::BF16 => &[0xc0, 0x7f],
                _ => &[0, 0x7e],
            };
            bytes[at..at + nan.len()].copy_from_slice(nan);
            assert_eq!(not_finite(tensor_type, &bytes), Some(at), "{tensor_type}");
        }
    }
}
