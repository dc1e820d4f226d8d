//! The tiny models' logits against those of Hugging Face `transformers`, and that every part of a model counts.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::{Engine, EngineOptions, KvType, Session};
use moce_gguf::{Gguf, Tensor, TensorType, Value};
use moce_testkit::{TINY_MODELS, TinyModel, Variant, floats, fused, variant};
use std::sync::Arc;

/// Logits after each token, `[tokens, vocabulary]`, with f32 keys and values.
fn logits(gguf: &Gguf, tokens: &[u32]) -> Vec<f32> {
    let options = EngineOptions { kv: KvType::F32, logit_rows: 16, ..EngineOptions::default() };
    let engine = Arc::new(Engine::load(gguf, &options).unwrap());
    let mut session = Session::new(&engine).unwrap();
    let mut all = Vec::new();
    session.score(tokens, &mut |_, logits| all.extend_from_slice(logits)).unwrap();
    all
}

/// Largest difference, as a share of the largest expected value.
fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    got.iter().zip(expected).fold(0.0f32, |max, (x, y)| max.max((x - y).abs())) / largest
}

#[test]
fn logits_agree_with_transformers() {
    for name in TINY_MODELS {
        let TinyModel { gguf, tokens, logits: expected } = TinyModel::open(name);
        let distance = distance(&logits(&gguf, &tokens), &expected);
        assert!(distance < 1e-4, "{name}: {distance:e} of the largest logit");
    }
}

fn unchanged(tensor: &Tensor, bytes: Vec<u8>) -> (TensorType, Vec<u8>) {
    (tensor.tensor_type(), bytes)
}

/// A tensor whose name contains `part` filled with one value.
fn filled(part: &'static str, value: f32) -> impl Fn(&Tensor, Vec<u8>) -> (TensorType, Vec<u8>) {
    move |tensor, bytes| {
        if !tensor.name().contains(part) {
            return unchanged(tensor, bytes);
        }
        (tensor.tensor_type(), floats(&bytes).iter().flat_map(|_| value.to_le_bytes()).collect())
    }
}

/// Expects that a change moves the logits by more than 1 % of the largest.
fn assert_counts(name: &str, what: &str, change: &Variant<'_>) {
    let TinyModel { gguf, tokens, logits: expected } = TinyModel::open(name);
    let distance = distance(&logits(&variant(&gguf, change), &tokens), &expected);
    assert!(distance > 0.01, "{name}: leaving out {what} moves the logits by {distance:e} only");
}

#[test]
fn every_tensor_counts() {
    // Norms left out are weights of 1, biases of 0, a shared gate of 0 is a constant factor of 1/2.
    let parts = [
        ("llama", "attn_norm", 1.0),
        ("llama", "ffn_norm", 1.0),
        ("llama", "output_norm", 1.0),
        ("llama", "rope_freqs", 1.0),
        ("mixtral", "attn_norm", 1.0),
        ("mixtral", "ffn_norm", 1.0),
        ("mixtral", "output_norm", 1.0),
        ("qwen2moe", "attn_norm", 1.0),
        ("qwen2moe", "ffn_norm", 1.0),
        ("qwen2moe", "output_norm", 1.0),
        ("qwen2moe", "attn_q.bias", 0.0),
        ("qwen2moe", "attn_k.bias", 0.0),
        ("qwen2moe", "attn_v.bias", 0.0),
        ("qwen2moe", "ffn_gate_inp_shexp", 0.0),
        ("qwen2moe", "ffn_down_shexp", 0.0),
    ];
    for (name, part, value) in parts {
        assert_counts(name, part, &Variant { metadata: &[], tensor: &filled(part, value) });
    }
}

#[test]
fn every_key_counts() {
    let keys = [
        ("llama", "llama.rope.freq_base", Some(Value::F32(10_000.0))),
        ("llama", "llama.attention.layer_norm_rms_epsilon", Some(Value::F32(1e-6))),
        ("llama-linear", "llama.rope.scaling.type", Some(Value::from("none"))),
        ("llama-yarn", "llama.rope.scaling.type", Some(Value::from("none"))),
        ("llama-yarn", "llama.rope.scaling.type", Some(Value::from("linear"))),
        ("mixtral", "llama.expert_weights_norm", Some(Value::Bool(false))),
        ("mixtral", "llama.expert_used_count", Some(Value::U32(1))),
        ("qwen2moe", "qwen2moe.expert_weights_norm", Some(Value::Bool(true))),
        ("qwen2moe", "qwen2moe.expert_weights_scale", Some(Value::F32(1.5))),
        ("qwen2moe", "qwen2moe.expert_used_count", Some(Value::U32(2))),
        ("qwen2moe-yarn", "qwen2moe.rope.scaling.type", Some(Value::from("none"))),
        ("qwen2moe-yarn", "qwen2moe.rope.scaling.attn_factor", None),
    ];
    for (name, key, value) in keys {
        let what = format!("{key} (now {value:?})");
        assert_counts(name, &what, &Variant { metadata: &[(key, value)], tensor: &unchanged });
    }
}

#[test]
fn a_missing_key_or_tensor_is_an_error_that_names_it() {
    let TinyModel { gguf, .. } = TinyModel::open("qwen2moe");
    for key in ["block_count", "embedding_length", "context_length", "attention.head_count", "expert_used_count"] {
        let key = format!("qwen2moe.{key}");
        let without = variant(&gguf, &Variant { metadata: &[(&key, None)], tensor: &unchanged });
        let error = Engine::load(&without, &EngineOptions::default()).err().expect("it cannot be loaded").to_string();
        assert!(error.contains(&key), "{error}");
    }
}

#[test]
fn an_unknown_architecture_is_named() {
    let TinyModel { gguf, .. } = TinyModel::open("llama");
    let change = [("general.architecture", Some(Value::from("abacus")))];
    let strange = variant(&gguf, &Variant { metadata: &change, tensor: &unchanged });
    let error = Engine::load(&strange, &EngineOptions::default()).err().expect("it cannot be loaded").to_string();
    assert!(error.contains("abacus") && error.contains("qwen2moe"), "{error}");
}

/// Scores come from unquantised activations, which no product of quantised weights takes.
#[test]
fn a_quantised_router_is_refused_and_float_ones_are_not() {
    let TinyModel { gguf, .. } = TinyModel::open("qwen2moe");
    let with_router = |tensor_type: TensorType| {
        let format = tensor_type.format().unwrap();
        let tensor = |tensor: &Tensor, bytes: Vec<u8>| {
            if !tensor.name().ends_with("ffn_gate_inp.weight") {
                return unchanged(tensor, bytes);
            }
            let values = floats(&bytes);
            let row_bytes = format.row_bytes(tensor.columns()).unwrap();
            let mut encoded = vec![0; values.len() / tensor.columns() * row_bytes];
            moce_quant::encode(format, &values, &mut encoded);
            (tensor_type, encoded)
        };
        let variant = variant(&gguf, &Variant { metadata: &[], tensor: &tensor });
        Engine::plan_for(&variant, &EngineOptions::default()).map(|_| ()).map_err(|error| error.to_string())
    };
    for quantised in [TensorType::Q8_0, TensorType::Q4_0] {
        let message = with_router(quantised).unwrap_err();
        let parts = ["blk.0.ffn_gate_inp.weight", quantised.name(), "a router must be F32, F16 or BF16"];
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    for float in [TensorType::F16, TensorType::BF16] {
        with_router(float).unwrap();
    }
}

#[test]
fn fused_gate_and_up_experts_are_the_same_model() {
    for name in ["mixtral", "qwen2moe"] {
        let TinyModel { gguf, tokens, .. } = TinyModel::open(name);
        assert!(logits(&fused(&gguf), &tokens) == logits(&gguf, &tokens), "{name}");
    }
}
