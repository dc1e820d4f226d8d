//! A step allocates nothing after the first token, on any thread, also while experts miss and are read from flash.
//!
//! One test in one file: the allocator counts for the whole process.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::routing::{Phase, Policy, RoutingOptions};
use moce_engine::{
    Backend, Capacity, CpuOptions, Engine, EngineOptions, FlashOptions, Prefetch, Sampler, SamplerOptions, Session,
};
use moce_quant::Format;
use moce_testkit::ModelFile;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations, on all threads, while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    work();
    let change = region.change();
    change.allocations + change.reallocations
}

/// Tokens decoded under the counter.
const TOKENS: usize = 48;

fn options(backend: Backend, routing: RoutingOptions, prefetch: Prefetch) -> EngineOptions {
    EngineOptions {
        cpu: CpuOptions { threads: Some(2), ..CpuOptions::default() },
        capacity: Some(Capacity::Experts(3)),
        flash: FlashOptions { backend, ..FlashOptions::default() },
        routing,
        prefetch,
        chunk: Some(8),
        ..EngineOptions::default()
    }
}

#[test]
fn a_step_allocates_nothing_after_the_first_token() {
    assert!(allocations(|| drop(std::hint::black_box(vec![1_u8]))) > 0, "the counter counts");
    // More than a thread itself allocates, and the test's own harness beside it.
    let elsewhere = || (0..1000).for_each(|_| drop(std::hint::black_box(vec![1_u8])));
    let counted = allocations(|| std::thread::scope(|scope| scope.spawn(elsewhere).join().unwrap()));
    assert!(counted >= 1000, "{counted} on another thread");
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    // Every eviction under the model's own choices, and every policy under one of them.
    let original = ["lru", "lfu", "score", "s3fifo"].map(|eviction| ("original", eviction));
    let policies = ["balanced", "prune:k=2", "drop-cold", "max-rank", "cumulative"].map(|policy| (policy, "lru"));
    for (index, (policy, eviction)) in original.into_iter().chain(policies).enumerate() {
        let routing = RoutingOptions {
            policy: policy.parse().unwrap(),
            eviction: eviction.parse().unwrap(),
            ..RoutingOptions::default()
        };
        let backend = [Backend::Auto, Backend::Pread][index % 2];
        let prefetch = [Prefetch::Off, Prefetch::NextLayer, Prefetch::Speculate][index % 3];
        let what = format!("{policy}, {eviction}, {backend}, prefetch {prefetch:?}");
        check(&model, &options(backend, routing, prefetch), &what);
    }
}

fn check(model: &ModelFile, options: &EngineOptions, what: &str) {
    let engine = Arc::new(Engine::open(&model.path, options).unwrap());
    let mut session = Session::new(&engine).unwrap();
    let sampling = SamplerOptions { temperature: 1.5, top_k: 0, repeat_penalty: 1.1, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(sampling, engine.hyperparameters().vocabulary).unwrap();
    let mut step = |session: &mut Session| {
        let token = sampler.sample(session.logits());
        sampler.accept(token);
        session.decode(token).unwrap();
    };
    let (first, rest) = model.tokens.split_at(9);
    session.prompt(first).unwrap();
    step(&mut session);
    let before = (session.routing().total(Phase::Generation).misses, engine.traffic().flash_bytes);
    let decoding = allocations(|| (0..TOKENS).for_each(|_| step(&mut session)));
    assert_eq!(decoding, 0, "{what}: allocations while decoding");
    let after = (session.routing().total(Phase::Generation).misses, engine.traffic().flash_bytes);
    // Policies that avoid misses leave few of them, but some.
    let enough = if options.routing.policy == Policy::Original { TOKENS as u64 } else { 1 };
    assert!(after.0 - before.0 >= enough, "{what}: {} misses show little", after.0 - before.0);
    assert!(after.1 > before.1, "{what}: nothing was read");
    let rest = &rest[..rest.len().min(session.remaining())];
    let reading = allocations(|| session.prompt(rest).unwrap());
    assert_eq!(reading, 0, "{what}: allocations in prompt chunks");
}
