//! The dimensions of real models, for synthetic ones of the same size.

use crate::Error;

/// Which network a shape is for, by GGUF's name of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShapeArchitecture {
    /// `llama` with experts: Mixtral.
    Llama,
    /// `qwen2moe`: biases on query, key and value, and a shared expert.
    Qwen2Moe,
}

impl ShapeArchitecture {
    /// GGUF's name.
    pub const fn name(self) -> &'static str {
        match self {
            ShapeArchitecture::Llama => "llama",
            ShapeArchitecture::Qwen2Moe => "qwen2moe",
        }
    }
}

/// Dimensions of a model with experts in every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The model that has it.
    pub name: &'static str,
    /// The network.
    pub architecture: ShapeArchitecture,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// N: experts a layer.
    pub experts: usize,
    /// K: experts a token.
    pub experts_per_token: usize,
    /// Width of one routed expert.
    pub expert_width: usize,
    /// Width of the shared expert; 0 without one.
    pub shared_width: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Longest context.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Epsilon of every RMSNorm.
    pub rms_epsilon: f32,
}

const SHAPES: [Shape; 2] = [
    // huggingface.co/Qwen/Qwen1.5-MoE-A2.7B, config.json
    Shape {
        name: "qwen1.5-moe-a2.7b",
        architecture: ShapeArchitecture::Qwen2Moe,
        layers: 24,
        hidden: 2048,
        heads: 16,
        kv_heads: 16,
        experts: 60,
        experts_per_token: 4,
        expert_width: 1408,
        shared_width: 5632,
        vocabulary: 151_936,
        context: 8192,
        rope_base: 1e6,
        rms_epsilon: 1e-6,
    },
    // huggingface.co/mistralai/Mixtral-8x7B-v0.1, config.json
    Shape {
        name: "mixtral-8x7b",
        architecture: ShapeArchitecture::Llama,
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        experts: 8,
        experts_per_token: 2,
        expert_width: 14_336,
        shared_width: 0,
        vocabulary: 32_000,
        context: 32_768,
        rope_base: 1e6,
        rms_epsilon: 1e-5,
    },
];

impl Shape {
    /// The shape of that name.
    ///
    /// # Errors
    /// [`Error::UnknownShape`].
    pub fn named(name: &str) -> Result<Shape, Error> {
        let known = || Shape::names().collect::<Vec<_>>().join(", ");
        let unknown = || Error::UnknownShape { given: name.into(), known: known() };
        SHAPES.iter().find(|shape| shape.name == name).cloned().ok_or_else(unknown)
    }

    /// Every name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|shape| shape.name)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}
