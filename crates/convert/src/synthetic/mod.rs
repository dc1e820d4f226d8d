//! A model file of full size with random weights: what a device makes of such a model can be known before it is downloaded.
//!
//! Its text means nothing. Its routing depends on the token and is as good as uniform, which is the worst case for an expert cache:
//! the hit rate is the cached share. llama.cpp reads it too.

mod tensors;
mod vocabulary;
mod weights;

use crate::pipeline::pipelined;
use crate::{Error, Progress, Shape, disk};
use moce_gguf::{Gguf, TensorType, Value, Writer};
use moce_quant::Format;
use rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use tensors::TensorPlan;
use weights::Weights;

/// Raised when other bytes come of the same shape, format and seed.
const RECIPE: u32 = 1;
const RECIPE_KEY: &str = "moce.synthetic.recipe";
const SHAPE_KEY: &str = "moce.synthetic.shape";
const FORMAT_KEY: &str = "moce.synthetic.format";
const SEED_KEY: &str = "moce.synthetic.seed";

/// Quant blocks of one piece of work: 1.2 MB of Q4_0, less than a second-level cache.
const PIECE_BLOCKS: usize = 1 << 16;

/// A synthetic model, not yet written.
pub struct Synthetic {
    writer: Writer,
    tensors: Vec<TensorPlan>,
    seed: u64,
}

/// Writes a synthetic model of `shape` at `path`, which must not exist: matrices in `format`, weights from `seed`.
///
/// # Errors
/// As [`Synthetic::new`] and [`Synthetic::write`].
pub fn write_shape(
    shape: &Shape,
    format: Format,
    seed: u64,
    path: &Path,
    progress: &mut Progress<'_>,
) -> Result<(), Error> {
    Synthetic::new(shape, format, seed)?.write(path, false, progress)
}

impl Synthetic {
    /// Plans a model; nothing is written yet.
    ///
    /// # Errors
    /// [`Error::Shape`] if the dimensions cannot be, or rows are no whole number of quant blocks of `format`.
    pub fn new(shape: &Shape, format: Format, seed: u64) -> Result<Synthetic, Error> {
        check(shape, format)?;
        let mut writer = Writer::new();
        set_metadata(&mut writer, shape, format, seed)?;
        let tensors = tensors::of(shape, format);
        for tensor in &tensors {
            let tensor_type = TensorType::ALL.iter().find(|known| known.format() == Some(tensor.format));
            let tensor_type = *tensor_type.expect("every format is a tensor type");
            writer.add_tensor(&tensor.name, tensor_type, &tensor.dims)?;
        }
        Ok(Synthetic { writer, tensors, seed })
    }

    /// The size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.writer.file_bytes()
    }

    /// Whether a file is this model already: made from the same shape, format and seed by the same recipe.
    pub fn matches(&self, gguf: &Gguf) -> bool {
        let bytes: u64 = gguf.parts().iter().map(|part| part.bytes()).sum();
        let same = |key| gguf.metadata().get(key).is_some() && gguf.metadata().get(key) == self.writer.get(key);
        bytes == self.file_bytes() && [RECIPE_KEY, SHAPE_KEY, FORMAT_KEY, SEED_KEY].into_iter().all(same)
    }

    /// Whether a file is a synthetic model, of whatever shape and recipe.
    pub fn made(gguf: &Gguf) -> bool {
        gguf.metadata().get(RECIPE_KEY).is_some()
    }

    /// Writes the file; `force`: in place of one that is there. Whether there is room is looked at first.
    ///
    /// # Errors
    /// [`Error::Space`], [`Error::Stopped`], or what the system says. No half file is left behind.
    pub fn write(&self, path: &Path, force: bool, progress: &mut Progress<'_>) -> Result<(), Error> {
        disk::check_space(path, self.file_bytes())?;
        let mut plans = self.tensors.iter().zip(0..);
        let mut written = 0;
        let mut stopped = false;
        let data = |_: &moce_gguf::Tensor, out: &mut dyn io::Write| {
            let (tensor, number) = plans.next().expect("the writer asks for the tensors it was given");
            let weights = Weights::new(tensor.format, tensor.mean, tensor.deviation);
            let pieces = tensor.blocks().div_ceil(PIECE_BLOCKS);
            // Pieces have seeds of their own, so that any core can make any of them.
            let mut seeds = Xoshiro256PlusPlus::seed_from_u64(self.seed.rotate_left(32) ^ number);
            let seeds: Vec<u64> = (0..pieces).map(|_| seeds.next_u64()).collect();
            let make = |piece: usize, bytes: &mut Vec<u8>| {
                let blocks = PIECE_BLOCKS.min(tensor.blocks() - piece * PIECE_BLOCKS);
                bytes.resize(blocks * tensor.format.block_bytes(), 0);
                weights.fill(&mut Xoshiro256PlusPlus::seed_from_u64(seeds[piece]), bytes);
                Ok(())
            };
            pipelined(pieces, make, |_, bytes| {
                out.write_all(bytes)?;
                written += bytes.len() as u64;
                match progress(written) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => {
                        stopped = true;
                        Err(io::ErrorKind::Interrupted.into())
                    }
                }
            })
        };
        let outcome = if force { self.writer.replace(path, data) } else { self.writer.create(path, data) };
        match outcome {
            Err(_) if stopped => Err(Error::Stopped { file: path.into() }),
            outcome => Ok(outcome?),
        }
    }
}

fn check(shape: &Shape, format: Format) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::Shape { shape: shape.name.into(), what });
    let widths = [shape.hidden, shape.expert_width, shape.shared_width];
    if let Some(width) = widths.into_iter().find(|&width| format.row_bytes(width).is_none()) {
        return wrong(format!("rows of {width} weights are no whole number of {} blocks", format.name()));
    }
    if shape.layers == 0 || shape.hidden == 0 || shape.expert_width == 0 || shape.context == 0 {
        return wrong("a dimension is 0".into());
    }
    if shape.heads == 0 || !shape.hidden.is_multiple_of(2 * shape.heads) {
        return wrong(format!("{} heads over a width of {}", shape.heads, shape.hidden));
    }
    if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
        return wrong(format!("{} query heads share {} key heads", shape.heads, shape.kv_heads));
    }
    if shape.experts_per_token == 0 || shape.experts_per_token > shape.experts {
        return wrong(format!("{} of {} experts a token", shape.experts_per_token, shape.experts));
    }
    if shape.vocabulary < vocabulary::LEAST {
        return wrong(format!("a vocabulary of {}, at least {}", shape.vocabulary, vocabulary::LEAST));
    }
    Ok(())
}

fn set_metadata(writer: &mut Writer, shape: &Shape, format: Format, seed: u64) -> Result<(), moce_gguf::Error> {
    let architecture = shape.architecture.name();
    writer.set("general.architecture", architecture)?;
    writer.set("general.name", format!("synthetic {}: random weights, for measuring speed", shape.name))?;
    writer.set("general.file_type", file_type(format))?;
    writer.set("general.quantization_version", 2u32)?; // ggml's since May 2023
    writer.set(RECIPE_KEY, RECIPE)?;
    writer.set(SHAPE_KEY, shape.name)?;
    writer.set(FORMAT_KEY, format.name())?;
    writer.set(SEED_KEY, seed)?;
    let mut set = |key: &str, value: Value| writer.set(&format!("{architecture}.{key}"), value);
    let mut count = |key: &str, value: usize| set(key, Value::U32(value as u32));
    count("block_count", shape.layers)?;
    count("context_length", shape.context)?;
    count("embedding_length", shape.hidden)?;
    count("attention.head_count", shape.heads)?;
    count("attention.head_count_kv", shape.kv_heads)?;
    count("rope.dimension_count", shape.head_dim())?;
    count("vocab_size", shape.vocabulary)?;
    count("expert_count", shape.experts)?;
    count("expert_used_count", shape.experts_per_token)?;
    if shape.shared_width > 0 {
        count("feed_forward_length", shape.shared_width)?;
        count("expert_feed_forward_length", shape.expert_width)?;
        count("expert_shared_feed_forward_length", shape.shared_width)?;
    } else {
        count("feed_forward_length", shape.expert_width)?;
    }
    set("rope.freq_base", Value::F32(shape.rope_base))?;
    set("attention.layer_norm_rms_epsilon", Value::F32(shape.rms_epsilon))?;
    vocabulary::set_metadata(writer, shape.vocabulary)
}

/// GGUF's number for a file whose matrices are mostly of a format (`general.file_type`).
fn file_type(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 7,
        Format::Q5_0 => 8,
        Format::BF16 => 32,
        _ => 1024, // guessed by the reader
    }
}
