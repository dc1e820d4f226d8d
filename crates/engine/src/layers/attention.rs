//! Grouped-query attention with rotary embedding and a KV cache (arXiv 2305.13245, 2104.09864).

use super::times;
use crate::load::Loader;
use crate::step::{Step, quantize};
use crate::weights::Weights;
use crate::weights::{MatrixId, VectorId};
use crate::{Error, Hyperparameters};
use moce_kernels::{Activations, Attention, Cpu, Product};

pub(crate) struct SelfAttention {
    /// `[heads · head_dim, hidden]`
    query: Projection,
    /// `[kv_heads · head_dim, hidden]`
    key: Projection,
    /// `[kv_heads · value_dim, hidden]`
    value: Projection,
    /// `[hidden, heads · value_dim]`
    output: Projection,
    heads: usize,
    head_dim: usize,
    value_dim: usize,
    kv_heads: usize,
}

struct Projection {
    weight: MatrixId,
    bias: Option<VectorId>,
}

impl Projection {
    fn load(loader: &mut Loader<'_>, name: &str, rows: usize, columns: usize) -> Result<Projection, Error> {
        Ok(Projection {
            weight: loader.weights.matrix(&format!("{name}.weight"), rows, columns)?,
            bias: loader.weights.find_vector(&format!("{name}.bias"), rows)?,
        })
    }

    /// The matrix product that this projection is, without the bias.
    fn product<'a>(&self, weights: &'a Weights, input: &'a Activations, output: &'a mut [f32]) -> Product<'a> {
        times(weights.matrix(self.weight), input, output)
    }

    fn add_bias(&self, cpu: &Cpu, weights: &Weights, y: &mut [f32]) {
        if let Some(bias) = self.bias {
            cpu.add_bias(y, weights.vector(bias));
        }
    }
}

impl SelfAttention {
    pub(crate) fn load(loader: &mut Loader<'_>, h: &Hyperparameters, layer: usize) -> Result<SelfAttention, Error> {
        let (keys, values) = (h.kv_heads * h.head_dim, h.kv_heads * h.value_dim);
        Ok(SelfAttention {
            query: Projection::load(loader, &format!("blk.{layer}.attn_q"), h.heads * h.head_dim, h.hidden)?,
            key: Projection::load(loader, &format!("blk.{layer}.attn_k"), keys, h.hidden)?,
            value: Projection::load(loader, &format!("blk.{layer}.attn_v"), values, h.hidden)?,
            output: Projection::load(loader, &format!("blk.{layer}.attn_output"), h.hidden, h.heads * h.value_dim)?,
            heads: h.heads,
            head_dim: h.head_dim,
            value_dim: h.value_dim,
            kv_heads: h.kv_heads,
        })
    }

    /// x += W_o · attention(rope(W_q n), rope(W_k n), W_v n)
    pub(crate) fn forward(&self, step: &mut Step<'_>, layer: usize) -> Result<(), Error> {
        step.quantize_normed(layer)?;
        let tokens = step.tokens.len();
        let Step { cpu, weights, experts, scratch, kv, first_position, .. } = step;
        let SelfAttention { heads, kv_heads, head_dim, value_dim, .. } = *self;
        let query = &mut scratch.query[..tokens * heads * head_dim];
        let key = &mut scratch.key[..tokens * kv_heads * head_dim];
        let value = &mut scratch.value[..tokens * kv_heads * value_dim];
        cpu.multiply(&mut [
            self.query.product(weights, &scratch.normed, query),
            self.key.product(weights, &scratch.normed, key),
            self.value.product(weights, &scratch.normed, value),
        ]);
        experts.poll()?;
        self.query.add_bias(cpu, weights, query);
        self.key.add_bias(cpu, weights, key);
        self.value.add_bias(cpu, weights, value);
        cpu.rotate(&scratch.rope, query, head_dim);
        cpu.rotate(&scratch.rope, key, head_dim);

        cpu.store_kv(kv, layer, *first_position, key, value);
        let attended = scratch.attended.begin(tokens, heads * value_dim);
        let attention = Attention {
            cache: kv,
            layer,
            heads,
            scale: 1.0 / (head_dim as f32).sqrt(),
            first_position: *first_position,
        };
        cpu.attention(&attention, query, &mut scratch.attention, attended);
        experts.poll()?;
        quantize(cpu, &mut scratch.attended, layer)?;

        let output = &mut scratch.projected[..tokens * step.hyperparameters.hidden];
        cpu.multiply(&mut [self.output.product(weights, &scratch.attended, output)]);
        experts.poll()?;
        self.output.add_bias(cpu, weights, output);
        cpu.add(&mut scratch.x[..output.len()], output);
        Ok(())
    }
}
