//! Which tensors a synthetic model has, in file order, and how large their weights are.

use crate::{Shape, ShapeArchitecture};
use moce_quant::Format;

/// One tensor: `dims` innermost first, weights of this mean and standard deviation.
pub(super) struct TensorPlan {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    pub(super) format: Format,
    pub(super) mean: f32,
    pub(super) deviation: f32,
}

impl TensorPlan {
    pub(super) fn blocks(&self) -> usize {
        self.dims.iter().product::<usize>() / self.format.block_len()
    }
}

/// Of the embedding: larger than all that the layers add together. Else every token soon looks like the average of those before it,
/// and all are routed alike.
const EMBEDDING_DEVIATION: f32 = 8.0;
/// Of router scores, for a normalised input: wide enough that which experts win depends on the token, narrow enough that all win.
const ROUTER_DEVIATION: f32 = 1.5;

/// The tensors of a shape. Matrices are in `format`; the head is in Q8_0 where `format` has fewer bits, as people quantise models; norms,
/// biases and routers are F32.
pub(super) fn of(shape: &Shape, format: Format) -> Vec<TensorPlan> {
    let &Shape { hidden, experts, expert_width, shared_width, vocabulary, .. } = shape;
    let kv = shape.kv_heads * shape.head_dim();
    let head_format = if bits(format) < bits(Format::Q8_0) { Format::Q8_0 } else { format };
    let mut tensors = Vec::new();
    let mut add = |name: String, dims: &[usize], format, mean, deviation| {
        tensors.push(TensorPlan { name, dims: dims.to_vec(), format, mean, deviation });
    };
    add("token_embd.weight".into(), &[hidden, vocabulary], format, 0.0, EMBEDDING_DEVIATION);
    add("output_norm.weight".into(), &[hidden], Format::F32, 1.0, 0.05);
    add("output.weight".into(), &[hidden, vocabulary], head_format, 0.0, unit(hidden));
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        // Products of normalised inputs have variance 1.
        let mut matrix = |part: &str, dims: &[usize]| add(name(part), dims, format, 0.0, unit(dims[0]));
        matrix("attn_q.weight", &[hidden, hidden]);
        matrix("attn_k.weight", &[hidden, kv]);
        matrix("attn_v.weight", &[hidden, kv]);
        matrix("attn_output.weight", &[hidden, hidden]);
        matrix("ffn_gate_exps.weight", &[hidden, expert_width, experts]);
        matrix("ffn_up_exps.weight", &[hidden, expert_width, experts]);
        matrix("ffn_down_exps.weight", &[expert_width, hidden, experts]);
        if shared_width > 0 {
            matrix("ffn_gate_shexp.weight", &[hidden, shared_width]);
            matrix("ffn_up_shexp.weight", &[hidden, shared_width]);
            matrix("ffn_down_shexp.weight", &[shared_width, hidden]);
        }
        let mut float =
            |part: &str, dims: &[usize], mean, deviation| add(name(part), dims, Format::F32, mean, deviation);
        float("attn_norm.weight", &[hidden], 1.0, 0.05);
        float("ffn_norm.weight", &[hidden], 1.0, 0.05);
        float("ffn_gate_inp.weight", &[hidden, experts], 0.0, ROUTER_DEVIATION * unit(hidden));
        if shape.architecture == ShapeArchitecture::Qwen2Moe {
            float("attn_q.bias", &[hidden], 0.0, 0.02);
            float("attn_k.bias", &[kv], 0.0, 0.02);
            float("attn_v.bias", &[kv], 0.0, 0.02);
            float("ffn_gate_inp_shexp.weight", &[hidden], 0.0, unit(hidden));
        }
    }
    tensors
}

fn unit(columns: usize) -> f32 {
    (columns as f32).sqrt().recip()
}

/// Bits of 32 weights.
fn bits(format: Format) -> usize {
    32 * 8 * format.block_bytes() / format.block_len()
}
