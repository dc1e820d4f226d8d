//! Runs Mixture-of-Experts language models from GGUF files.
//!
//! ```text
//! file --gguf--> tensor directory --load--> dense weights in memory, experts in slots
//! token -> embedding -> per layer [ norm, attention + KV cache, norm, router -> selection -> experts ] -> head -> sampler -> text
//! ```
//!
//! [`Engine`] is a loaded model, [`Session`] a text in progress, [`Sampler`] picks tokens, [`generate`] joins them.
//!
//! ```no_run
//! use moce_engine::{Engine, EngineOptions, GenerateOptions, Sampler, SamplerOptions, Session, generate};
//! use std::{ops::ControlFlow, path::Path, sync::Arc};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Arc::new(Engine::open(Path::new("model.gguf"), &EngineOptions::default())?);
//! let mut session = Session::new(&engine)?;
//! let mut sampler = Sampler::new(SamplerOptions::default(), engine.hyperparameters().vocabulary)?;
//! let prompt = engine.tokenizer().encode_prompt("Once upon a time")?;
//! let options = GenerateOptions { max_tokens: 100, ..Default::default() };
//! let answer = generate(&mut session, &mut sampler, &prompt, &options, &mut |piece| {
//!     print!("{}", piece.text);
//!     ControlFlow::Continue(())
//! })?;
//! println!("\n{:.1} tokens/s", answer.generation.tokens_per_second());
//! # Ok(())
//! # }
//! ```
//!
//! Reading order: `engine`, `load` (two phases: declare, read), `weights` and `experts` (what is read), `architectures/` (one
//! file a model family), `layers/` (their parts), `step` and `scratch` (one forward call), `session`, `sampler`, `generate`.

#![forbid(unsafe_code)]

mod architectures;
mod budget;
mod cache_state;
mod capacity;
mod engine;
mod error;
mod experts;
mod flash;
mod flash_profiles;
mod generate;
mod hyperparameters;
mod identity;
mod layers;
mod load;
mod meter;
mod new_file;
mod pace;
pub mod packed;
mod plan;
mod record;
mod sampler;
mod scratch;
mod session;
mod step;
mod tap;
mod telemetry;
pub mod tokenizer;
mod weights;

pub use budget::Budget;
pub use cache_state::CacheState;
pub use capacity::Capacity;
pub use engine::{Engine, EngineOptions};
pub use error::Error;
pub use experts::{ExpertMap, LayerCatalogue, ProjectionShape};
pub use flash::FlashOptions;
pub use generate::{GenerateOptions, Generation, PhaseReport, Piece, StopReason, generate};
pub use hyperparameters::{ExpertShape, Hyperparameters, RopeKeys};
pub use identity::ModelIdentity;
pub use layers::Prefetch;
pub use meter::Meter;
pub use new_file::NewFile;
pub use pace::{Pace, PaceReport};
pub use plan::MemoryPlan;
pub use record::RoutingRecorder;
pub use sampler::{Sampler, SamplerOptions};
pub use session::{Session, Snapshot};
pub use tap::{ObservedStep, RoutingObserver, read_scores, read_selections};
pub use telemetry::Traffic;
pub use tokenizer::Tokenizer;

pub use moce_flash::{Backend, Direct, Fault, Faults};
pub use moce_kernels::{Cpu, CpuOptions, Isa, KvType, Layout, order};
pub use moce_routing as routing;
