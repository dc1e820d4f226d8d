//! GGUF files: metadata, the tensor directory, positional reads of tensor bytes, and a writer.
//!
//! ```text
//! bytes of each part --cursor--> header (metadata, tensor entries) --split--> Gguf: one directory over all parts
//! ```
//!
//! Files are read by plain positional reads, never mapped. Tensor data is not looked at: [`Gguf::read_tensor`] and
//! [`Gguf::read_at`] copy bytes, what they mean is the business of `moce-quant` and of the engine.
//!
//! ```no_run
//! # fn main() -> Result<(), moce_gguf::Error> {
//! let model = moce_gguf::Gguf::open("model-00001-of-00004.gguf".as_ref())?; // any part opens all
//! let architecture = model.metadata().string("general.architecture")?; // missing or no string: an error that says so
//! let layers = model.metadata().u32(&format!("{architecture}.block_count"))?; // integers of any width, if they fit
//! let scale = model.metadata().find::<f32>("general.scale")?.unwrap_or(1.0); // `find` tells missing from wrong
//! for token in model.metadata().strings("tokenizer.ggml.tokens")? {
//!     let _: &[u8] = token; // GGUF strings need not be UTF-8
//! }
//! let embedding = model.tensor("token_embd.weight")?;
//! let format: Option<moce_quant::Format> = embedding.tensor_type().format();
//! let (rows, columns) = (embedding.rows(), embedding.columns());
//! let mut bytes = vec![0; embedding.bytes()];
//! model.read_tensor(embedding, &mut bytes)?;
//! # let _ = (layers, scale, format, rows, columns);
//! # Ok(()) }
//! ```
//!
//! Writing streams the data, so that nothing but the header is held in memory:
//!
//! ```no_run
//! # fn main() -> Result<(), moce_gguf::Error> {
//! # use moce_gguf::{TensorType, Writer};
//! let mut writer = Writer::new();
//! writer.set("general.architecture", "llama")?;
//! writer.add_tensor("token_embd.weight", TensorType::F32, &[64, 1000])?; // columns first
//! writer.create("new.gguf".as_ref(), |tensor, out| out.write_all(&vec![0; tensor.bytes()]))?;
//! # Ok(()) }
//! ```
//!
//! Every file is taken for hostile: lengths and offsets are checked before use, counts are compared with the bytes that
//! remain before anything is allocated, and errors name file, offset, expected and found. The limits are in [`limits`].

#![forbid(unsafe_code)]

mod cursor;
mod directory;
mod encode;
mod error;
mod header;
pub mod limits;
mod metadata;
mod part;
pub mod split;
mod strings;
mod tensor;
mod tensor_type;
mod unfinished;
mod value;
mod writer;

pub use directory::Gguf;
pub use error::Error;
pub use metadata::{FromValue, Metadata};
pub use part::Part;
pub use strings::Strings;
pub use tensor::Tensor;
pub use tensor_type::TensorType;
pub use unfinished::unfinished_path;
pub use value::{Array, Value, ValueType};
pub use writer::Writer;
