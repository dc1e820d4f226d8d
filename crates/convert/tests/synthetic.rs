//! Synthetic models: they open, run, route by the token and nearly uniformly, and leave nothing half behind.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_convert::{Error, Shape, Synthetic, write_shape};
use moce_engine::{Capacity, Engine, EngineOptions, Session};
use moce_gguf::Gguf;
use moce_quant::Format;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// A few layers of a real model, with narrower matrices.
fn small(name: &str) -> Shape {
    let mut shape = Shape { layers: 4, hidden: 256, heads: 4, kv_heads: 2, ..Shape::named(name).unwrap() };
    shape.vocabulary = 1000;
    shape.expert_width = 128;
    shape.shared_width = shape.shared_width.min(256);
    shape
}

fn write(shape: &Shape, format: Format, seed: u64, path: &Path) {
    write_shape(shape, format, seed, path, &mut |_| ControlFlow::Continue(())).unwrap();
}

#[test]
fn the_shapes_have_the_sizes_of_the_models() {
    let bytes = |name, format| Synthetic::new(&Shape::named(name).unwrap(), format, 1).unwrap().file_bytes() as f64;
    // The models' own files in Q4_0 (their heads are Q6_K): 8.15 and 26.44 GB.
    assert!((bytes("qwen1.5-moe-a2.7b", Format::Q4_0) / 8.15e9 - 1.0).abs() < 0.02);
    assert!((bytes("mixtral-8x7b", Format::Q4_0) / 26.44e9 - 1.0).abs() < 0.02);
    let parameters = |name| bytes(name, Format::F16) / 2.0;
    assert!((parameters("qwen1.5-moe-a2.7b") / 14.3e9 - 1.0).abs() < 0.02);
    assert!((parameters("mixtral-8x7b") / 46.7e9 - 1.0).abs() < 0.02);
    let unknown = Shape::named("mixtral").unwrap_err().to_string();
    assert!(unknown.contains("mixtral-8x7b") && unknown.contains("qwen1.5-moe-a2.7b"), "{unknown}");
}

#[test]
fn models_of_every_format_run_and_are_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    for name in Shape::names() {
        for format in Format::ALL {
            let shape = small(name);
            let path = folder.path().join(format!("{name}-{}.gguf", format.name()));
            write(&shape, format, 1, &path);
            let plan = Synthetic::new(&shape, format, 1).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), plan.file_bytes());
            assert!(plan.matches(&Gguf::open(&path).unwrap()));
            assert!(!Synthetic::new(&shape, format, 2).unwrap().matches(&Gguf::open(&path).unwrap()));
            let engine = Arc::new(Engine::open(&path, &EngineOptions::default()).unwrap());
            let text = "Größe 🙂\n";
            let ids = engine.tokenizer().encode_prompt(text).unwrap();
            assert_eq!(ids.len(), text.len(), "one token a byte");
            let mut session = Session::new(&engine).unwrap();
            session.prompt(&ids).unwrap();
            assert!(session.logits().iter().all(|logit| logit.is_finite()));
        }
    }
    let again = folder.path().join("again.gguf");
    let first = folder.path().join("mixtral-8x7b-Q4_0.gguf");
    write(&small("mixtral-8x7b"), Format::Q4_0, 1, &again);
    assert!(std::fs::read(&first).unwrap() == std::fs::read(&again).unwrap());
    std::fs::remove_file(&again).unwrap();
    write(&small("mixtral-8x7b"), Format::Q4_0, 2, &again);
    assert!(std::fs::read(&first).unwrap() != std::fs::read(&again).unwrap());
}

#[test]
fn hits_are_the_cached_share() {
    // Uniform routing that depends on the token: of C cached of N experts, C / N are hits, whatever is evicted. Routing that is the same
    // for every token would always hit, routing to few experts more often than that.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let shape = Shape { layers: 4, hidden: 512, ..small("qwen1.5-moe-a2.7b") };
    write(&shape, Format::Q4_0, 1, &path);
    for cached in [15, 30] {
        let options = EngineOptions { capacity: Some(Capacity::Experts(cached)), ..EngineOptions::default() };
        let engine = Arc::new(Engine::open(&path, &options).unwrap());
        let mut session = Session::new(&engine).unwrap();
        let mut before = 0;
        for step in 0..250u32 {
            if step == 50 {
                before = engine.traffic().fetches;
            }
            session.decode(step.wrapping_mul(0x9e37_79b9) % 1000).unwrap();
        }
        let chosen = 200.0 * (shape.layers * shape.experts_per_token) as f64;
        let hits = 1.0 - (engine.traffic().fetches - before) as f64 / chosen;
        let share = cached as f64 / shape.experts as f64;
        assert!((hits - share).abs() < 0.08, "{cached} cached: {hits:.3} hits, {share:.3} of the experts");
    }
}

#[test]
fn stopping_leaves_nothing_and_force_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let shape = small("mixtral-8x7b");
    let mut calls = 0;
    let stopped = write_shape(&shape, Format::Q4_0, 1, &path, &mut |written| {
        assert!(written > 0);
        calls += 1;
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Stopped { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    std::fs::write(&path, "precious").unwrap();
    let refused = write_shape(&shape, Format::Q4_0, 1, &path, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(Error::Gguf(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let synthetic = Synthetic::new(&shape, Format::Q4_0, 1).unwrap();
    let mut last = 0;
    let mut progress = |written| {
        last = written;
        ControlFlow::Continue(())
    };
    synthetic.write(&path, true, &mut progress).unwrap();
    assert!(synthetic.matches(&Gguf::open(&path).unwrap()));
    assert!(last <= synthetic.file_bytes() && last > synthetic.file_bytes() * 9 / 10);
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let refused = |change: &dyn Fn(&mut Shape)| {
        let mut shape = small("qwen1.5-moe-a2.7b");
        change(&mut shape);
        let outcome = Synthetic::new(&shape, Format::Q4_0, 1).map(|_| ());
        assert!(matches!(outcome, Err(Error::Shape { .. })), "{shape:?}: {outcome:?}");
    };
    refused(&|shape| shape.hidden = 100);
    refused(&|shape| shape.heads = 3);
    refused(&|shape| shape.kv_heads = 3);
    refused(&|shape| shape.experts_per_token = 61);
    refused(&|shape| shape.vocabulary = 256);
    refused(&|shape| shape.layers = 0);
}
