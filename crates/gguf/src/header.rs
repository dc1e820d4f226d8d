//! The header of one file: magic, version, metadata, tensor entries.
//!
//! ```text
//! magic "GGUF"  version u32  tensors u64  keys u64
//! keys    x [ key string, value type u32, value ]           string = length u64, bytes
//! tensors x [ name string, dims u32, dim u64 each, type u32, offset u64 ]
//! zeros up to `general.alignment` (32 if absent), then tensor data; a tensor's offset counts from here
//! ```
//!
//! Versions 2 and 3 have this layout; 3 only added big-endian files. Everything is little endian.

use crate::cursor::{Cursor, beginning};
use crate::{Array, Error, Metadata, Part, Strings, Tensor, TensorType, Value, ValueType, limits, tensor};

/// The alignment where `general.alignment` is absent.
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
/// Key of the alignment.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
/// The first bytes of every file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// Length and one byte of key, value type, one byte of value.
const LEAST_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Length and one byte of name, number of dimensions, one dimension, type, offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) metadata: Metadata,
    /// In file order; ranges are inside the file and do not overlap.
    pub(crate) tensors: Vec<Tensor>,
}

/// Reads the header of `part`, which is number `part_index` of its model.
pub(crate) fn read(part: &Part, part_index: usize) -> Result<Header, Error> {
    let mut cursor = Cursor::new(part);
    let version = magic_and_version(&mut cursor, part)?;
    let tensors_at = cursor.position();
    let tensors = cursor.u64("number of tensors")?;
    let keys_at = cursor.position();
    let keys = cursor.u64("number of keys")?;
    let tensor_count =
        check_count(&cursor, tensors_at, "number of tensors", tensors, LEAST_TENSOR_BYTES, limits::TENSORS)?;
    let key_count = check_count(&cursor, keys_at, "number of keys", keys, LEAST_KEY_BYTES, limits::KEYS)?;

    let (metadata, alignment) = metadata(&mut cursor, part, key_count)?;
    let mut tensors = Vec::with_capacity(tensor_count);
    let mut places = Vec::with_capacity(tensor_count);
    for index in 0..tensor_count {
        let (tensor, place) = tensor_entry(&mut cursor, index, part_index, alignment)?;
        tensors.push(tensor);
        places.push(place);
    }
    // Under `limits::HEADER_BYTES` and `limits::ALIGNMENT`: no overflow.
    let data_start = cursor.position().next_multiple_of(alignment);
    place_tensors(&mut cursor, part, &mut tensors, &places, data_start)?;
    Ok(Header { version, metadata, tensors })
}

/// A count of entries that take at least `least_bytes` each, and of which a file has at most `limit`.
fn check_count(
    cursor: &Cursor<'_>,
    offset: u64,
    what: &str,
    count: u64,
    least_bytes: u64,
    limit: usize,
) -> Result<usize, Error> {
    match cursor.check_count(offset, what, count, least_bytes)? {
        count if count > limit => Err(cursor.malformed(offset, what, format_args!("at most {limit}"), count)),
        count => Ok(count),
    }
}

fn magic_and_version(cursor: &mut Cursor<'_>, part: &Part) -> Result<u32, Error> {
    let other = |found: String| Error::NotGguf { file: part.path().into(), found };
    if part.bytes() < MAGIC.len() as u64 {
        let found = if part.bytes() == 0 { "it is empty" } else { "it is shorter than 4 bytes" };
        return Err(other(found.into()));
    }
    let magic: [u8; 4] = cursor.number("magic", |bytes| bytes)?;
    if magic != MAGIC {
        return Err(other(format!("its magic is \"{}\"", magic.escape_ascii())));
    }
    match cursor.u32("version")? {
        version @ (2 | 3) => Ok(version),
        version if (1..=3).contains(&version.swap_bytes()) => {
            Err(Error::BigEndian { file: part.path().into(), version: version.swap_bytes() })
        }
        version => Err(cursor.malformed(4, "version", "2 or 3", version)),
    }
}

/// The metadata, and the alignment that it declares.
fn metadata(cursor: &mut Cursor<'_>, part: &Part, count: usize) -> Result<(Metadata, u64), Error> {
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut entries = Vec::with_capacity(count);
    let mut places = Vec::with_capacity(count);
    let mut inner_arrays = 0;
    for index in 0..count {
        cursor.enter("key", index);
        places.push(cursor.position());
        let key = cursor.name("key")?;
        cursor.enter_named("key", &key);
        let value_at = cursor.position();
        let value = value(cursor, &mut inner_arrays)?;
        if key == ALIGNMENT_KEY {
            alignment = check_alignment(&value).ok_or_else(|| {
                let expected = format!("a power of two up to {}", limits::ALIGNMENT);
                cursor.malformed(value_at, "value", expected, value.describe())
            })?;
        }
        entries.push((key, value));
    }
    match Metadata::new(part.path(), entries) {
        Ok(metadata) => Ok((metadata, alignment)),
        Err((second, key)) => {
            cursor.enter_named("key", &key);
            Err(cursor.malformed(places[second], "key", "each key once", "it again"))
        }
    }
}

/// `inner_arrays` counts those of the whole file.
fn value(cursor: &mut Cursor<'_>, inner_arrays: &mut usize) -> Result<Value, Error> {
    let what = "value";
    Ok(match value_type(cursor, "value type")? {
        ValueType::U8 => Value::U8(cursor.number(what, u8::from_le_bytes)?),
        ValueType::I8 => Value::I8(cursor.number(what, i8::from_le_bytes)?),
        ValueType::U16 => Value::U16(cursor.number(what, u16::from_le_bytes)?),
        ValueType::I16 => Value::I16(cursor.number(what, i16::from_le_bytes)?),
        ValueType::U32 => Value::U32(cursor.number(what, u32::from_le_bytes)?),
        ValueType::I32 => Value::I32(cursor.number(what, i32::from_le_bytes)?),
        ValueType::F32 => Value::F32(cursor.number(what, f32::from_le_bytes)?),
        ValueType::U64 => Value::U64(cursor.number(what, u64::from_le_bytes)?),
        ValueType::I64 => Value::I64(cursor.number(what, i64::from_le_bytes)?),
        ValueType::F64 => Value::F64(cursor.number(what, f64::from_le_bytes)?),
        ValueType::Bool => Value::Bool(bool(cursor)?),
        ValueType::String => {
            let mut bytes = Vec::new();
            cursor.string(what, u64::MAX, &mut bytes)?;
            Value::String(bytes)
        }
        ValueType::Array => Value::Array(array(cursor, 1, inner_arrays)?),
    })
}

fn value_type(cursor: &mut Cursor<'_>, what: &str) -> Result<ValueType, Error> {
    let offset = cursor.position();
    let id = cursor.u32(what)?;
    let most = ValueType::ALL.len() - 1;
    ValueType::from_id(id).ok_or_else(|| cursor.malformed(offset, what, format_args!("0 to {most}"), id))
}

fn bool(cursor: &mut Cursor<'_>) -> Result<bool, Error> {
    let offset = cursor.position();
    match cursor.number("bool", u8::from_le_bytes)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.malformed(offset, "bool", "0 or 1", other)),
    }
}

fn array(cursor: &mut Cursor<'_>, depth: usize, inner_arrays: &mut usize) -> Result<Array, Error> {
    let offset = cursor.position();
    if depth > limits::ARRAY_DEPTH {
        let expected = format!("at most {} arrays within each other", limits::ARRAY_DEPTH);
        return Err(cursor.malformed(offset, "array", expected, depth));
    }
    let element_type = value_type(cursor, "element type")?;
    let offset = cursor.position();
    let count = cursor.u64("element count")?;
    let count = cursor.check_count(offset, "element count", count, element_type.least_bytes())?;
    Ok(match element_type {
        ValueType::U8 => Array::U8(cursor.numbers(count, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(cursor.numbers(count, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(cursor.numbers(count, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(cursor.numbers(count, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(cursor.numbers(count, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(cursor.numbers(count, i32::from_le_bytes)?),
        ValueType::F32 => Array::F32(cursor.numbers(count, f32::from_le_bytes)?),
        ValueType::U64 => Array::U64(cursor.numbers(count, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(cursor.numbers(count, i64::from_le_bytes)?),
        ValueType::F64 => Array::F64(cursor.numbers(count, f64::from_le_bytes)?),
        ValueType::Bool => Array::Bool((0..count).map(|_| bool(cursor)).collect::<Result<_, _>>()?),
        ValueType::String => {
            let mut strings = Strings::new();
            strings.reserve(count);
            let mut bytes = Vec::new();
            for _ in 0..count {
                cursor.string("array element", u64::MAX, &mut bytes)?;
                strings.push(&bytes);
            }
            strings.shrink_to_fit();
            Array::String(strings)
        }
        ValueType::Array => {
            *inner_arrays = inner_arrays.saturating_add(count);
            if *inner_arrays > limits::INNER_ARRAYS {
                let expected = format!("at most {} arrays within others", limits::INNER_ARRAYS);
                return Err(cursor.malformed(offset, "element count", expected, count));
            }
            Array::Array((0..count).map(|_| array(cursor, depth + 1, inner_arrays)).collect::<Result<_, _>>()?)
        }
    })
}

/// The alignment that a value of [`ALIGNMENT_KEY`] declares, if it can be one.
pub(crate) fn check_alignment(value: &Value) -> Option<u64> {
    let alignment = u64::try_from(value.as_integer()?).ok()?;
    (alignment.is_power_of_two() && alignment <= limits::ALIGNMENT).then_some(alignment)
}

/// Where a tensor's bytes are, as its entry says.
struct Place {
    /// From the start of the data.
    offset: u64,
    /// Where in the file this is said.
    said_at: u64,
}

fn tensor_entry(cursor: &mut Cursor<'_>, index: usize, part: usize, alignment: u64) -> Result<(Tensor, Place), Error> {
    cursor.enter("tensor", index);
    let name = cursor.name("name")?;
    cursor.enter_named("tensor", &name);

    let shape_at = cursor.position();
    let dim_count = cursor.u32("number of dimensions")? as usize;
    if dim_count == 0 || dim_count > limits::DIMS {
        return Err(cursor.malformed(
            shape_at,
            "number of dimensions",
            format_args!("1 to {}", limits::DIMS),
            dim_count,
        ));
    }
    let mut dims = [0u64; limits::DIMS];
    for dim in &mut dims[..dim_count] {
        *dim = cursor.u64("dimension")?;
    }
    let dims = &dims[..dim_count];

    let type_at = cursor.position();
    let id = cursor.u32("type")?;
    let tensor_type =
        TensorType::from_id(id).ok_or_else(|| cursor.malformed(type_at, "type", "a tensor type of ggml", id))?;
    let bytes = tensor::shape_bytes(tensor_type, dims)
        .map_err(|bad| cursor.malformed(shape_at, "dimensions", bad.expected, bad.found))?;
    let mut sizes = [1usize; limits::DIMS];
    for (size, &dim) in sizes.iter_mut().zip(dims) {
        *size = dim as usize; // fits: all together do
    }

    let said_at = cursor.position();
    let offset = cursor.u64("offset")?;
    if !offset.is_multiple_of(alignment) {
        return Err(cursor.malformed(said_at, "offset", format_args!("a multiple of {alignment}"), offset));
    }
    let tensor = Tensor { name, tensor_type, dims: sizes, dim_count, part, offset: 0, bytes };
    Ok((tensor, Place { offset, said_at }))
}

/// Turns offsets into places in the file; every tensor must lie inside it and apart from the others.
fn place_tensors(
    cursor: &mut Cursor<'_>,
    part: &Part,
    tensors: &mut [Tensor],
    places: &[Place],
    data_start: u64,
) -> Result<(), Error> {
    let mut needed = 0;
    for (tensor, place) in tensors.iter_mut().zip(places) {
        let start = data_start.checked_add(place.offset);
        let end = start.and_then(|start| start.checked_add(tensor.bytes as u64));
        let (Some(start), Some(end)) = (start, end) else {
            cursor.enter_named("tensor", &tensor.name);
            let room = part.bytes().saturating_sub(data_start);
            let expected = format!("{} bytes inside the data ({room} bytes)", tensor.bytes);
            return Err(cursor.malformed(place.said_at, "offset", expected, place.offset));
        };
        tensor.offset = start;
        needed = needed.max(end);
    }
    if needed > part.bytes() {
        return Err(Error::CutOff { file: part.path().into(), bytes: part.bytes(), needed });
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| tensors[index].offset);
    for pair in order.windows(2) {
        let (first, second) = (&tensors[pair[0]], &tensors[pair[1]]);
        let end = first.offset + first.bytes as u64;
        if second.offset < end {
            cursor.enter_named("tensor", &second.name);
            let expected = format!("at least {}, where {:?} ends", end - data_start, beginning(&first.name));
            return Err(cursor.malformed(places[pair[1]].said_at, "offset", expected, second.offset - data_start));
        }
    }
    Ok(())
}
