//! What tests of several crates share: finding test data, the shipped models, tiny models and variants of them. A
//! dev-dependency only; its functions panic, as tests do.

#![forbid(unsafe_code)]

mod data;
mod memory_group;
mod model_file;
mod shipped;
mod small_disk;
mod tiny;

pub use data::{data_bytes, data_path, skipped};
pub use memory_group::MemoryGroup;
pub use model_file::ModelFile;
pub use shipped::{demo_model, mixtral_shape};
pub use small_disk::on_a_small_disk;
pub use tiny::{ChangeTensor, TINY_MODELS, TinyModel, Variant, floats, fused, requantised, variant};
