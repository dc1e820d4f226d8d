//! What a memory plan counts, and contexts that it refuses.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::{Budget, CpuOptions, Engine, EngineOptions, Error};
use moce_gguf::{Gguf, Value};
use moce_testkit::{TinyModel, Variant, variant};

fn options(context: Option<usize>) -> EngineOptions {
    let cpu = CpuOptions { threads: Some(1), ..CpuOptions::default() };
    EngineOptions { cpu, context, chunk: Some(16), ..EngineOptions::default() }
}

fn with_key(gguf: &Gguf, key: &str, value: u32) -> Gguf {
    let metadata = &[(key, Some(Value::U32(value)))];
    variant(gguf, &Variant { metadata, tensor: &|tensor, bytes| (tensor.tensor_type(), bytes) })
}

#[test]
fn a_context_of_nothing_is_refused() {
    let TinyModel { gguf, .. } = TinyModel::open("llama");
    let error = Engine::plan_for(&gguf, &options(Some(0))).unwrap_err();
    assert!(matches!(error, Error::ContextEmpty { .. }), "{error}");
    let nothing = with_key(&gguf, "llama.context_length", 0);
    for context in [None, Some(0), Some(16)] {
        let message = Engine::plan_for(&nothing, &options(context)).unwrap_err().to_string();
        assert!(message.contains("llama.context_length must not be 0"), "{message}");
    }
}

#[test]
fn no_session_is_refused_and_more_than_memory_holds_do_not_fit() {
    let TinyModel { gguf, .. } = TinyModel::open("mixtral");
    let plan = |sessions| Engine::plan_for(&gguf, &EngineOptions { sessions, ..options(None) });
    assert!(matches!(plan(0), Err(Error::NoSessions)));
    for sessions in [1 << 60, usize::MAX / 2 + 1, usize::MAX] {
        assert!(matches!(plan(sessions), Err(Error::Budget { .. })), "{sessions} sessions");
    }
}

#[test]
fn what_the_caller_needs_is_left_free() {
    let TinyModel { gguf, .. } = TinyModel::open("mixtral");
    let plan = |memory, reserve| Engine::plan_for(&gguf, &EngineOptions { memory, reserve, ..options(None) });
    assert!(plan(Budget::All, 1 << 40).unwrap().program_bytes > 1 << 40);
    for reserve in [1 << 50, u64::MAX] {
        assert!(matches!(plan(Budget::Auto, reserve), Err(Error::Budget { .. })), "{reserve} bytes");
    }
}

#[test]
fn the_logits_of_a_session_are_counted() {
    let TinyModel { gguf, .. } = TinyModel::open("mixtral");
    let kv_bytes = |context| Engine::plan_for(&gguf, &options(Some(context))).unwrap().kv_bytes;
    let vocabulary = gguf.tensor("token_embd.weight").unwrap().rows() as u64;
    // Keys and values grow with the context.
    assert_eq!(2 * kv_bytes(32) - kv_bytes(64), 4 * vocabulary);
}

#[test]
fn the_rotation_of_a_step_is_counted() {
    // Neighbours have two factors a dimension, halves one.
    for (name, architecture, row_floats) in [("mixtral", "llama", 2), ("qwen2moe", "qwen2moe", 1)] {
        let TinyModel { gguf, .. } = TinyModel::open(name);
        let key = format!("{architecture}.rope.dimension_count");
        let scratch = |dimensions| {
            let plan = Engine::plan_for(&with_key(&gguf, &key, dimensions), &options(None)).unwrap();
            (plan.scratch_bytes, plan.chunk as u64)
        };
        let ((narrow, chunk), (wide, _)) = (scratch(2), scratch(8));
        assert_eq!(wide - narrow, chunk * row_floats * (8 - 2) * 4, "{name}");
    }
}
