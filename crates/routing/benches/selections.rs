//! Expert selections per second on one core, as the simulator and the engine would get them: scores in, cache updated.
//!
//! `cargo bench -p moce-routing`; the items per second are selections (tokens times K). Aims: 20 million for original routing
//! with LRU, 2 million for cache-prior.

use divan::Bencher;
use divan::counter::ItemsCount;
use moce_routing::{LayerShape, Phase, RoutingOptions, Selection, SessionRouting};

fn main() {
    divan::main();
}

/// N, K, C of Qwen1.5-MoE, DeepSeek-V2-Lite and a 128-expert model.
const SHAPES: [(usize, usize, usize); 3] = [(60, 4, 30), (64, 6, 32), (128, 8, 40)];

/// Scores of so many tokens fit into a second-level cache, as those of a simulator's pass over many configurations do.
const TOKENS: usize = 1024;

/// Scores that drift slowly with noise on top, so that hits and misses both happen (about a third misses under LRU).
fn scores(experts: usize) -> Vec<Vec<f32>> {
    let mut state = 20_241_127_u64;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    let mut base: Vec<f32> = (0..experts).map(|_| 3.0 * noise()).collect();
    let mut row = || {
        base.iter_mut().for_each(|base| *base = 0.8 * *base + noise());
        base.iter().map(|base| base + 2.5 * noise()).collect()
    };
    (0..TOKENS).map(|_| row()).collect()
}

fn session(
    (experts, experts_per_token, capacity): (usize, usize, usize),
    policy: &str,
    eviction: &str,
) -> SessionRouting {
    let options = RoutingOptions {
        policy: policy.parse().expect("a policy of the benchmark"),
        eviction: eviction.parse().expect("an eviction of the benchmark"),
        ..RoutingOptions::default()
    };
    SessionRouting::new(&[LayerShape { experts, experts_per_token, capacity }], options)
        .expect("a shape of the benchmark")
}

fn route(bencher: Bencher<'_, '_>, shape: (usize, usize, usize), policy: &str, eviction: &str) {
    let rows = scores(shape.0);
    let mut session = session(shape, policy, eviction);
    let mut selection = Selection::with_capacity(shape.1);
    bencher.counter(ItemsCount::new(TOKENS * shape.1)).bench_local(|| {
        for row in &rows {
            session.route(0, row, Phase::Generation, &mut selection).expect("finite scores");
        }
        selection.ascending()[0]
    });
}

#[divan::bench(args = SHAPES)]
fn original_lru(bencher: Bencher<'_, '_>, shape: (usize, usize, usize)) {
    route(bencher, shape, "original", "lru");
}

/// Selections read from a trace: no scores, the cache alone.
#[divan::bench(args = SHAPES)]
fn replay_lru(bencher: Bencher<'_, '_>, shape: (usize, usize, usize)) {
    let mut session = session(shape, "original", "lru");
    let mut selection = Selection::with_capacity(shape.1);
    let mut choices: Vec<Vec<u32>> = Vec::with_capacity(TOKENS);
    for row in scores(shape.0) {
        session.route(0, &row, Phase::Generation, &mut selection).expect("finite scores");
        choices.push(selection.ranked().to_vec());
    }
    bencher.counter(ItemsCount::new(TOKENS * shape.1)).bench_local(|| {
        for choice in &choices {
            session.replay(0, choice, None, Phase::Generation, &mut selection).expect("a selection of the router");
        }
        selection.ascending()[0]
    });
}

#[divan::bench(args = SHAPES)]
fn cache_prior_lru(bencher: Bencher<'_, '_>, shape: (usize, usize, usize)) {
    route(bencher, shape, "balanced", "lru");
}

#[divan::bench(args = ["max-rank", "cumulative", "drop-cold", "prune:k=2", "swap:rank=4,seed=1"])]
fn other_policies_lru(bencher: Bencher<'_, '_>, policy: &str) {
    route(bencher, SHAPES[0], policy, "lru");
}

#[divan::bench(args = ["lfu", "score", "s3fifo"])]
fn original_other_evictions(bencher: Bencher<'_, '_>, eviction: &str) {
    route(bencher, SHAPES[0], "original", eviction);
}
