//! Packed models: what the header of a file that `moce pack` wrote says about its experts, read and written in one place
//! (docs/formats/packed.md). The bodies of the experts are the packer's matter (moce-convert), finding them the catalogue's.
//!
//! A packed file is a GGUF file of the architecture [`ARCHITECTURE`], which no other reader knows. Its metadata are the original's and
//! the keys below; its dense tensors are the original's; the experts of a layer are one tensor of bytes, [`Layer::tensor`]; the last
//! tensor holds the checksums.

use crate::{Error, ModelIdentity};
use moce_flash::{Check, Slice};
use moce_gguf::{Array, Gguf, Strings, Tensor, TensorType, Value, Writer};
use moce_kernels::Layout;
use moce_quant::Format;
use std::collections::HashMap;

/// `general.architecture` of a packed file.
pub const ARCHITECTURE: &str = "moce-packed";
/// Version of the format; a reader refuses any other.
pub const VERSION: u32 = 1;
/// Every tensor, expert and projection starts on a multiple of this, so that direct reads bring nothing else.
pub const ALIGNMENT: usize = 4096;
/// The tensor of checksums.
pub const CHECKSUMS: &str = "moce.packed.checksums";

const ARCHITECTURE_KEY: &str = "general.architecture";
const VERSION_KEY: &str = "moce.packed.version";
const ORIGINAL_KEY: &str = "moce.packed.architecture";
const IDENTITY_KEY: &str = "moce.packed.identity";
const ISA_KEY: &str = "moce.packed.isa";
const LAYERS_KEY: &str = "moce.packed.layers";
const SHAPES_KEY: &str = "moce.packed.shapes";
const TYPES_KEY: &str = "moce.packed.types";
const ORDERS_KEY: &str = "moce.packed.orders";

/// Gate, up, down.
const PROJECTIONS: usize = 3;
/// Upper bound for experts and widths, to keep arithmetic on hostile headers far from overflow.
const COUNT_LIMIT: u32 = 1 << 24;

/// GGUF's name of the network in a file, packed or not.
///
/// # Errors
/// The file names none.
pub fn architecture(gguf: &Gguf) -> Result<&str, moce_gguf::Error> {
    let named = gguf.metadata().string(ARCHITECTURE_KEY)?;
    if named == ARCHITECTURE { gguf.metadata().string(ORIGINAL_KEY) } else { Ok(named) }
}

/// The identity that a packed file says the original had; `None` for a file that is not packed.
pub(crate) fn identity(gguf: &Gguf) -> Result<Option<ModelIdentity>, Error> {
    Ok(Header::read(gguf)?.map(|header| header.identity))
}

/// XXH3 (64 bits, no seed) of the bytes of a projection or tensor.
pub fn checksum(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

/// What the metadata of a packed file say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// GGUF's name of the original architecture.
    pub architecture: String,
    /// The original's identity: what belongs to the one belongs to the other.
    pub identity: ModelIdentity,
    /// The instruction set that the experts were ordered for.
    pub isa: String,
    /// The layers that have experts, in order.
    pub layers: Vec<Layer>,
}

/// The experts of one layer, all alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Which transformer block.
    pub block: u32,
    /// N
    pub count: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of one expert.
    pub width: u32,
    /// Of gate, up and down projection.
    pub formats: [Format; PROJECTIONS],
    /// How the rows of each stand.
    pub layouts: [Layout; PROJECTIONS],
}

impl Layer {
    /// The name of the tensor that holds the experts: I8, `[stride, count]`.
    pub fn tensor(&self) -> String {
        format!("blk.{}.experts", self.block)
    }

    /// Rows and columns of gate, up and down projection.
    pub fn shapes(&self) -> [(usize, usize); PROJECTIONS] {
        let (hidden, width) = (self.hidden as usize, self.width as usize);
        [(width, hidden), (width, hidden), (hidden, width)]
    }

    /// Bytes of gate, up and down projection; `None` if their rows are no whole number of quant blocks.
    pub fn bytes(&self) -> Option<[usize; PROJECTIONS]> {
        let mut bytes = [0; PROJECTIONS];
        for ((bytes, format), (rows, columns)) in bytes.iter_mut().zip(self.formats).zip(self.shapes()) {
            *bytes = format.row_bytes(columns)?.checked_mul(rows)?;
        }
        Some(bytes)
    }

    /// Where each projection starts in an expert, and the stride from one expert to the next.
    pub fn starts(&self) -> Option<([usize; PROJECTIONS], usize)> {
        let mut starts = [0; PROJECTIONS];
        let mut end = 0;
        for (start, bytes) in starts.iter_mut().zip(self.bytes()?) {
            *start = end;
            end += bytes.checked_next_multiple_of(ALIGNMENT)?;
        }
        Some((starts, end))
    }
}

impl Header {
    /// Reads the header of a packed file; `None` if the file is not packed.
    ///
    /// # Errors
    /// The file is of another version, or its header is damaged.
    pub fn read(gguf: &Gguf) -> Result<Option<Header>, Error> {
        let metadata = gguf.metadata();
        if metadata.find::<&str>(ARCHITECTURE_KEY)? != Some(ARCHITECTURE) {
            return Ok(None);
        }
        let version = metadata.u32(VERSION_KEY)?;
        if version != VERSION {
            let what =
                format!("packed in version {version}, this moce reads version {VERSION}; pack the original again");
            return Err(Error::shape(gguf, what));
        }
        if gguf.parts().len() > 1 {
            return Err(Error::shape(gguf, "a packed model is one file, and this is a split one".into()));
        }
        let bad = |key: &str, what: &str| Error::shape(gguf, format!("key {key}: {what}"));
        let blocks = metadata.u32s(LAYERS_KEY)?;
        if blocks.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(bad(LAYERS_KEY, "layers that do not ascend"));
        }
        let (shapes, types) = (metadata.u32s(SHAPES_KEY)?, metadata.u32s(TYPES_KEY)?);
        let orders = metadata.strings(ORDERS_KEY)?;
        for (key, found) in [(SHAPES_KEY, shapes.len()), (TYPES_KEY, types.len()), (ORDERS_KEY, orders.len())] {
            if found != PROJECTIONS * blocks.len() {
                return Err(bad(key, &format!("{found} elements for {} layers, expected 3 each", blocks.len())));
            }
        }
        if shapes.iter().any(|&count| count == 0 || count > COUNT_LIMIT) {
            return Err(bad(SHAPES_KEY, &format!("a number that is not 1 to {COUNT_LIMIT}")));
        }
        let formats = types.iter().map(|&id| {
            let format = TensorType::from_id(id).and_then(TensorType::format);
            format.ok_or_else(|| bad(TYPES_KEY, &format!("type {id}, which moce does not compute with")))
        });
        let formats = formats.collect::<Result<Vec<_>, _>>()?;
        let layouts = orders.iter().map(|name| {
            let layout = std::str::from_utf8(name).ok().and_then(Layout::named);
            layout.ok_or_else(|| bad(ORDERS_KEY, "an order that this moce does not know; pack the original again"))
        });
        let layouts = layouts.collect::<Result<Vec<_>, _>>()?;
        if formats.iter().zip(&layouts).any(|(format, layout)| format.block_len() == 1 && *layout != Layout::Plain) {
            return Err(bad(ORDERS_KEY, "a float format that is not plain"));
        }
        let three = |index: usize| index * PROJECTIONS..(index + 1) * PROJECTIONS;
        let layers = blocks.iter().enumerate().map(|(index, &block)| {
            let shape = &shapes[three(index)];
            Layer {
                block,
                count: shape[0],
                hidden: shape[1],
                width: shape[2],
                formats: formats[three(index)].try_into().expect("three"),
                layouts: layouts[three(index)].try_into().expect("three"),
            }
        });
        let identity = metadata.string(IDENTITY_KEY)?.to_owned();
        let header = Header {
            architecture: metadata.string(ORIGINAL_KEY)?.to_owned(),
            identity: identity.try_into().map_err(|what: String| bad(IDENTITY_KEY, &what))?,
            isa: metadata.string(ISA_KEY)?.to_owned(),
            layers: layers.collect(),
        };
        for layer in &header.layers {
            header.body(gguf, layer)?;
        }
        Ok(Some(header))
    }

    /// Sets the keys of a packed file.
    ///
    /// # Errors
    /// The header would be over the writer's limits.
    pub fn set(&self, writer: &mut Writer) -> Result<(), moce_gguf::Error> {
        let numbers =
            |of: &dyn Fn(&Layer) -> Vec<u32>| Value::Array(Array::U32(self.layers.iter().flat_map(of).collect()));
        let id = |format: &Format| {
            let tensor_type = TensorType::ALL.iter().find(|known| known.format() == Some(*format));
            tensor_type.expect("every format is a tensor type").id()
        };
        let mut orders = Strings::new();
        self.layers.iter().flat_map(|layer| layer.layouts).for_each(|layout| orders.push(layout.name().as_bytes()));
        writer.set(ARCHITECTURE_KEY, ARCHITECTURE)?;
        writer.set(VERSION_KEY, VERSION)?;
        writer.set(ORIGINAL_KEY, self.architecture.as_str())?;
        writer.set(IDENTITY_KEY, self.identity.to_string())?;
        writer.set(ISA_KEY, self.isa.as_str())?;
        writer.set(LAYERS_KEY, numbers(&|layer| vec![layer.block]))?;
        writer.set(SHAPES_KEY, numbers(&|layer| vec![layer.count, layer.hidden, layer.width]))?;
        writer.set(TYPES_KEY, numbers(&|layer| layer.formats.iter().map(id).collect()))?;
        writer.set(ORDERS_KEY, Value::Array(Array::String(orders)))
    }

    /// The tensor that holds a layer's experts, where each projection of the first expert starts in its file, and the stride.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    pub fn body<'g>(&self, gguf: &'g Gguf, layer: &Layer) -> Result<(&'g Tensor, [u64; PROJECTIONS], u64), Error> {
        let tensor = gguf.tensor(&layer.tensor())?;
        let Some((starts, stride)) = layer.starts() else {
            return Err(Error::shape(
                gguf,
                format!("{}: rows that are no whole number of quant blocks", layer.tensor()),
            ));
        };
        let dims = [stride, layer.count as usize];
        if tensor.tensor_type() != TensorType::I8 || tensor.dims() != dims {
            return Err(Error::tensor_shape(gguf, tensor, &dims));
        }
        if !tensor.offset().is_multiple_of(ALIGNMENT as u64) {
            let what = format!("tensor {} starts at {}, no multiple of {ALIGNMENT}", tensor.name(), tensor.offset());
            return Err(Error::shape(gguf, what));
        }
        Ok((tensor, starts.map(|start| tensor.offset() + start as u64), stride as u64))
    }

    /// Every projection of every expert in the order of its checksums, as a slice of the file.
    ///
    /// # Errors
    /// As [`Header::body`].
    pub fn slices(&self, gguf: &Gguf) -> Result<Vec<Slice>, Error> {
        let mut slices = Vec::new();
        for layer in &self.layers {
            let (tensor, starts, stride) = self.body(gguf, layer)?;
            let bytes = layer.bytes().expect("`body` has looked");
            for expert in 0..u64::from(layer.count) {
                slices.extend(starts.iter().zip(bytes).map(|(start, bytes)| Slice {
                    file: tensor.part(),
                    offset: start + expert * stride,
                    bytes,
                }));
            }
        }
        Ok(slices)
    }

    /// The tensors that every token uses: all but the experts and the checksums.
    pub fn dense<'g>(&self, gguf: &'g Gguf) -> impl Iterator<Item = &'g Tensor> {
        let bodies: Vec<String> = self.layers.iter().map(Layer::tensor).collect();
        gguf.tensors()
            .filter(move |tensor| tensor.name() != CHECKSUMS && !bodies.iter().any(|body| body == tensor.name()))
    }
}

/// The checksums of a packed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksums {
    /// Of everything before the first tensor.
    pub header: u64,
    /// Of the dense tensors, in the order of the directory.
    pub dense: Vec<u64>,
    /// Of gate, up and down projection of every expert, layer by layer.
    pub experts: Vec<u64>,
}

impl Checksums {
    /// How many there are in a file with so many dense tensors and these layers.
    pub fn count(dense: usize, layers: &[Layer]) -> usize {
        1 + dense + layers.iter().map(|layer| PROJECTIONS * layer.count as usize).sum::<usize>()
    }

    /// Reads the checksums of a packed file.
    ///
    /// # Errors
    /// They are not there, or not as many as they should be.
    pub fn read(gguf: &Gguf, header: &Header) -> Result<Checksums, Error> {
        let tensor = gguf.tensor(CHECKSUMS)?;
        let dense = header.dense(gguf).count();
        let count = Checksums::count(dense, &header.layers);
        if tensor.tensor_type() != TensorType::I64 || tensor.dims() != [count] {
            return Err(Error::tensor_shape(gguf, tensor, &[count]));
        }
        let mut bytes = vec![0; tensor.bytes()];
        gguf.read_tensor(tensor, &mut bytes)?;
        let mut all = bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        Ok(Checksums {
            header: all.next().expect("one for the header"),
            dense: all.by_ref().take(dense).collect(),
            experts: all.collect(),
        })
    }

    /// The contents of the tensor.
    pub fn to_bytes(&self) -> Vec<u8> {
        let all = std::iter::once(&self.header).chain(&self.dense).chain(&self.experts);
        all.flat_map(|sum| sum.to_le_bytes()).collect()
    }
}

/// A check of the experts' checksums for whoever fetches them.
pub(crate) fn check(gguf: &Gguf) -> Result<Box<Check>, Error> {
    let header = Header::read(gguf)?.ok_or_else(|| Error::no_checksums(gguf))?;
    let sums = Checksums::read(gguf, &header)?.experts;
    let slices = header.slices(gguf)?;
    let expected: HashMap<(usize, u64), u64> =
        slices.iter().map(|slice| (slice.file, slice.offset)).zip(sums).collect();
    Ok(Box::new(move |slice, bytes| expected.get(&(slice.file, slice.offset)) == Some(&checksum(bytes))))
}
