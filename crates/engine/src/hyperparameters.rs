//! What a model file says about the network's shape, read from its metadata once and checked.
//!
//! Every value is either in the file or a documented default; nothing is guessed from the model's name.

use crate::{Error, packed};
use moce_gguf::Gguf;
use moce_kernels::{Rope, RopePairing, RopeParameters, RopeScaling};

/// Upper bound for every count in a header. The shapes of the tensors must agree with the counts anyway; this only keeps
/// arithmetic on hostile headers far from overflow.
const COUNT_LIMIT: u64 = 1 << 24;

/// Shape of a decoder-only transformer.
#[derive(Clone, Debug)]
pub struct Hyperparameters {
    /// GGUF's name of the architecture.
    pub architecture: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads a layer.
    pub heads: usize,
    /// Key and value heads a layer; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of one query or key head.
    pub head_dim: usize,
    /// Width of one value head.
    pub value_dim: usize,
    /// Width of the dense feed-forward network; 0 where every layer has experts.
    pub feed_forward: usize,
    /// Longest context that the model was made for.
    pub context: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Epsilon of every RMSNorm.
    pub rms_epsilon: f32,
    /// Rotary embedding.
    pub rope: RopeKeys,
    /// Routed experts, where there are any.
    pub experts: Option<ExpertShape>,
}

/// Rotary embedding as the metadata describes it.
#[derive(Clone, Debug)]
pub struct RopeKeys {
    /// Leading dimensions of a head that are rotated.
    pub dimensions: usize,
    /// Base of the geometric series of frequencies.
    pub base: f32,
    /// Which two values of a head form a pair.
    pub pairing: RopePairing,
    /// How positions past the original context are mapped into it.
    pub scaling: RopeScaling,
}

impl RopeKeys {
    /// The frequencies; the factors are those of `rope_freqs.weight`, where the model has it `[dimensions / 2]`.
    pub(crate) fn rope(&self, frequency_factors: Option<&[f32]>) -> Result<Rope, Error> {
        let &RopeKeys { dimensions, base, pairing, scaling } = self;
        Ok(Rope::new(&RopeParameters { dimensions, base, scaling, frequency_factors, pairing })?)
    }
}

/// Shape of the routed experts, the same in every layer that has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertShape {
    /// N: experts a layer.
    pub count: usize,
    /// K: experts a token.
    pub per_token: usize,
    /// Width of one routed expert.
    pub feed_forward: usize,
    /// Width of the shared expert; 0 without one.
    pub shared_feed_forward: usize,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub renormalise: bool,
    /// What the weights are multiplied with after that.
    pub weight_scale: f32,
}

impl Hyperparameters {
    /// Reads the keys that every architecture has. `pairing` is a property of the architecture, not of the file.
    pub(crate) fn read(gguf: &Gguf, pairing: RopePairing) -> Result<Hyperparameters, Error> {
        let keys = Keys::new(gguf)?;
        let hidden = keys.count("embedding_length")?;
        let heads = keys.count("attention.head_count")?;
        if hidden == 0 || heads == 0 {
            return Err(Error::shape(gguf, "embedding_length and attention.head_count must not be 0".into()));
        }
        // Absent: every query head has a key and value head of its own (GGUF's rule).
        let kv_heads = keys.count_or("attention.head_count_kv", heads)?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::shape(gguf, format!("{heads} query heads cannot share {kv_heads} key heads evenly")));
        }
        let head_dim = keys.count_or("attention.key_length", hidden / heads)?;
        let value_dim = keys.count_or("attention.value_length", hidden / heads)?;
        let dimensions = keys.count_or("rope.dimension_count", head_dim)?;
        if head_dim == 0 || value_dim == 0 || dimensions > head_dim || !dimensions.is_multiple_of(2) {
            let shape = format!("heads of {head_dim} and {value_dim} values, {dimensions} of them rotated");
            return Err(Error::shape(gguf, shape));
        }
        let context = keys.count("context_length")?;
        if context == 0 {
            return Err(Error::shape(gguf, format!("{} must not be 0", keys.name("context_length"))));
        }
        Ok(Hyperparameters {
            layers: keys.count("block_count")?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            feed_forward: keys.count_or("feed_forward_length", 0)?,
            context,
            vocabulary: gguf.tensor("token_embd.weight")?.rows(),
            rms_epsilon: keys.real("attention.layer_norm_rms_epsilon")?,
            rope: RopeKeys {
                dimensions,
                // Absent: 10,000, the value of the RoPE paper and GGUF's default.
                base: keys.real_or("rope.freq_base", 10_000.0)?,
                pairing,
                scaling: read_scaling(gguf, &keys)?,
            },
            experts: None,
            architecture: keys.architecture,
        })
    }

    /// Reads the shape of the routed experts; `None` where `expert_count` is absent or 0. `renormalise` is the architecture's
    /// rule where the file does not state one.
    pub(crate) fn read_experts(gguf: &Gguf, renormalise: bool) -> Result<Option<ExpertShape>, Error> {
        let keys = Keys::new(gguf)?;
        let count = keys.count_or("expert_count", 0)?;
        if count == 0 {
            return Ok(None);
        }
        let per_token = keys.count("expert_used_count")?;
        if per_token == 0 || per_token > count {
            return Err(Error::shape(gguf, format!("{per_token} of {count} experts a token")));
        }
        // Absent (Mixtral): experts are as wide as the dense network would be.
        let feed_forward = match keys.find("expert_feed_forward_length")? {
            Some(width) => width,
            None => keys.count("feed_forward_length")?,
        };
        let shared_feed_forward = keys.count_or("expert_shared_feed_forward_length", 0)?;
        let renormalise = gguf.metadata().find::<bool>(&keys.name("expert_weights_norm"))?.unwrap_or(renormalise);
        let weight_scale = keys.real_or("expert_weights_scale", 1.0)?;
        Ok(Some(ExpertShape { count, per_token, feed_forward, shared_feed_forward, renormalise, weight_scale }))
    }
}

fn read_scaling(gguf: &Gguf, keys: &Keys<'_>) -> Result<RopeScaling, Error> {
    let kind = match gguf.metadata().find::<&str>(&keys.name("rope.scaling.type"))? {
        Some(kind) => kind.to_owned(),
        // Files of before 2023-10 state a linear factor alone.
        None => match gguf.metadata().find::<f32>(&keys.name("rope.scale_linear"))? {
            Some(factor) => return Ok(RopeScaling::Linear { factor }),
            None => return Ok(RopeScaling::None),
        },
    };
    match kind.as_str() {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: keys.real("rope.scaling.factor")? }),
        "yarn" => Ok(RopeScaling::Yarn {
            factor: keys.real("rope.scaling.factor")?,
            original_context: keys.count("rope.scaling.original_context_length")?,
            // The YaRN paper's values, and GGUF's defaults.
            beta_fast: keys.real_or("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: keys.real_or("rope.scaling.yarn_beta_slow", 1.0)?,
            extrapolation: keys.real_or("rope.scaling.yarn_ext_factor", 1.0)?,
            attention_factor: keys.real_or("rope.scaling.attn_factor", 1.0)?,
        }),
        other => Err(Error::shape(gguf, format!("rope scaling '{other}' is not supported (none, linear, yarn are)"))),
    }
}

/// Metadata keys below the architecture's name.
struct Keys<'g> {
    gguf: &'g Gguf,
    architecture: String,
}

impl<'g> Keys<'g> {
    fn new(gguf: &'g Gguf) -> Result<Keys<'g>, Error> {
        Ok(Keys { gguf, architecture: packed::architecture(gguf)?.to_owned() })
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn find(&self, key: &str) -> Result<Option<usize>, Error> {
        let name = self.name(key);
        match self.gguf.metadata().find::<u64>(&name)? {
            Some(value) if value > COUNT_LIMIT => {
                Err(Error::shape(self.gguf, format!("{name} is {value}, over the limit of {COUNT_LIMIT}")))
            }
            Some(value) => Ok(Some(value as usize)),
            None => Ok(None),
        }
    }

    fn count(&self, key: &str) -> Result<usize, Error> {
        self.find(key)?.ok_or_else(|| Error::missing(self.gguf, self.name(key)))
    }

    fn count_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        Ok(self.find(key)?.unwrap_or(default))
    }

    fn real(&self, key: &str) -> Result<f32, Error> {
        let name = self.name(key);
        let value = self.gguf.metadata().find::<f32>(&name)?.ok_or_else(|| Error::missing(self.gguf, name.clone()))?;
        if value.is_finite() { Ok(value) } else { Err(Error::shape(self.gguf, format!("{name} is {value}"))) }
    }

    fn real_or(&self, key: &str, default: f32) -> Result<f32, Error> {
        match self.gguf.metadata().find::<f32>(&self.name(key))? {
            Some(_) => self.real(key),
            None => Ok(default),
        }
    }
}
