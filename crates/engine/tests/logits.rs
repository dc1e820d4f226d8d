//! The logits that a session shows: those of its last token, zeros at the beginning, and never one that is no number.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::{CpuOptions, Engine, EngineOptions, Error, Session};
use moce_gguf::{Gguf, Tensor};
use moce_testkit::{TinyModel, Variant, floats, variant};
use std::sync::Arc;

fn open(gguf: &Gguf, chunk: usize, logit_rows: usize) -> Session {
    let cpu = CpuOptions { threads: Some(1), ..CpuOptions::default() };
    let options = EngineOptions { cpu, chunk: Some(chunk), logit_rows, ..EngineOptions::default() };
    Session::new(&Arc::new(Engine::load(gguf, &options).unwrap())).unwrap()
}

#[test]
fn scoring_leaves_the_logits_of_the_last_token_and_a_new_text_none() {
    let TinyModel { gguf, tokens, .. } = TinyModel::open("qwen2moe");
    for (chunk, logit_rows) in [(80, 8), (7, 3), (16, 16), (5, 1)] {
        let mut session = open(&gguf, chunk, logit_rows);
        let mut last = Vec::new();
        session.score(&tokens, &mut |_, logits| last = logits.to_vec()).unwrap();
        assert!(session.logits() == last, "chunks of {chunk}, {logit_rows} rows");
        session.restart();
        assert!(session.logits().iter().all(|&logit| logit == 0.0));
        session.prompt(&tokens).unwrap();
        session.clear().unwrap();
        assert!(session.logits().iter().all(|&logit| logit == 0.0));
    }
}

#[test]
fn logits_that_are_not_finite_are_an_error_and_are_not_kept() {
    let TinyModel { gguf, tokens, .. } = TinyModel::open("qwen2moe");
    assert!(gguf.find_tensor("output.weight").is_some());
    // The sums of the head leave the range of f32; everything before it is as ever.
    let huge = |tensor: &Tensor, bytes: Vec<u8>| {
        let is_head = tensor.name() == "output.weight";
        let bytes = if is_head {
            floats(&bytes).iter().flat_map(|x| (x.signum() * 3e38).to_le_bytes()).collect()
        } else {
            bytes
        };
        (tensor.tensor_type(), bytes)
    };
    let broken = variant(&gguf, &Variant { metadata: &[], tensor: &huge });
    for run in [
        &(|session: &mut Session| session.prompt(&tokens)) as &dyn Fn(&mut Session) -> Result<(), Error>,
        &|session| session.decode(tokens[0]),
        &|session| session.score(&tokens, &mut |_, logits| assert!(logits.iter().all(|logit| logit.is_finite()))),
    ] {
        let mut session = open(&broken, 80, 8);
        let layers = session.engine().hyperparameters().layers;
        assert!(matches!(run(&mut session), Err(Error::NonFinite { layer }) if layer == layers));
        assert!(session.logits().iter().all(|&logit| logit == 0.0));
    }
}
