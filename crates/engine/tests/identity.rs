//! One set of bits: the same logits in one batch, in chunks, token by token, on every instruction set, with one thread or two.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::{CpuOptions, Engine, EngineOptions, Isa, KvType, Session};
use moce_gguf::Gguf;
use moce_quant::Format;
use moce_testkit::{TinyModel, requantised};
use std::sync::Arc;

fn engine(gguf: &Gguf, isa: Isa, threads: usize, kv: KvType, chunk: usize) -> Arc<Engine> {
    let cpu = CpuOptions { isa: Some(isa), threads: Some(threads), affinity: None };
    Arc::new(
        Engine::load(gguf, &EngineOptions { cpu, kv, chunk: Some(chunk), logit_rows: 8, ..EngineOptions::default() })
            .unwrap(),
    )
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

fn scored(engine: &Arc<Engine>, tokens: &[u32]) -> Vec<u32> {
    let mut session = Session::new(engine).unwrap();
    let mut all = Vec::new();
    session.score(tokens, &mut |_, logits| all.extend(bits(logits))).unwrap();
    all
}

fn decoded(engine: &Arc<Engine>, tokens: &[u32]) -> Vec<u32> {
    let mut session = Session::new(engine).unwrap();
    let step = |&token: &u32| {
        session.decode(token).unwrap();
        bits(session.logits())
    };
    tokens.iter().flat_map(step).collect()
}

#[test]
fn every_way_to_compute_gives_the_same_bits() {
    for name in ["llama", "mixtral", "qwen2moe"] {
        let TinyModel { gguf, tokens, .. } = TinyModel::open(name);
        for format in Format::ALL {
            let gguf = requantised(&gguf, format);
            let reference = scored(&engine(&gguf, Isa::Scalar, 1, KvType::F16, 80), &tokens);
            for isa in Isa::available() {
                for (threads, chunk) in [(1, 80), (2, 80), (1, 7), (2, 33)] {
                    let got = scored(&engine(&gguf, isa, threads, KvType::F16, chunk), &tokens);
                    assert!(
                        got == reference,
                        "{name} in {}: {isa}, {threads} threads, chunks of {chunk}",
                        format.name()
                    );
                }
                let got = decoded(&engine(&gguf, isa, 2, KvType::F16, 80), &tokens);
                assert!(got == reference, "{name} in {}: {isa}, token by token", format.name());
            }
        }
    }
}

#[test]
fn every_kv_type_gives_the_same_bits_in_a_batch_and_token_by_token() {
    let TinyModel { gguf, tokens, .. } = TinyModel::open("llama");
    let mut seen = Vec::new();
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let reference = scored(&engine(&gguf, Isa::Scalar, 1, kv, 80), &tokens);
        for isa in Isa::available() {
            assert!(scored(&engine(&gguf, isa, 2, kv, 11), &tokens) == reference, "{kv:?} on {isa}, in chunks");
            assert!(decoded(&engine(&gguf, isa, 1, kv, 80), &tokens) == reference, "{kv:?} on {isa}, token by token");
        }
        // The types do differ from each other.
        assert!(!seen.contains(&reference), "{kv:?}");
        seen.push(reference);
    }
}

#[test]
fn a_cleared_session_starts_anew() {
    let TinyModel { gguf, tokens, .. } = TinyModel::open("mixtral");
    let engine = engine(&gguf, Isa::best(), 2, KvType::F16, 80);
    let mut session = Session::new(&engine).unwrap();
    session.prompt(&tokens).unwrap();
    let first = bits(session.logits());
    session.prompt(&[1]).unwrap();
    session.clear().unwrap();
    session.prompt(&tokens).unwrap();
    assert_eq!(bits(session.logits()), first);
}
