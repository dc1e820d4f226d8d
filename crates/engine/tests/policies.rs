//! Lossy routing is reproducible: the same selections and the same bits in a batch, in chunks, token by token, streamed or resident.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::routing::{Counts, Phase, Policy, RoutingOptions, Selection, Start, TouchOrder};
use moce_engine::{
    Backend, Budget, Capacity, CpuOptions, Engine, EngineOptions, Error, Faults, FlashOptions, ObservedStep, Prefetch,
    RoutingObserver, Session,
};
use moce_quant::Format;
use moce_testkit::ModelFile;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

const POLICIES: [&str; 9] = [
    "cache-prior:lambda=0.1",
    "cache-prior:lambda=0.5,j=0,except=0",
    "cache-prior:lambda=0.5,j=1",
    "max-rank",
    "max-rank:m=12,j=0",
    "cumulative:p=0.9,j=1",
    "prune",
    "drop-cold:j=1",
    "swap:rank=2,seed=7",
];

fn routing(policy: &str) -> RoutingOptions {
    let policy: Policy = Policy::parse(policy, |_| unreachable!("no files")).unwrap();
    RoutingOptions { prompt_policy: policy.clone(), policy, ..RoutingOptions::default() }
}

/// Every policy, and evictions, touch orders and starts other than the default ones.
fn routings() -> impl Iterator<Item = RoutingOptions> {
    let others = [
        ("cache-prior:lambda=0.5,j=1", "lfu:memory=64", TouchOrder::WeakFirst, Start::First),
        ("max-rank", "s3fifo", TouchOrder::StrongFirst, Start::Random(1)),
        ("drop-cold:j=1", "score:memory=16", TouchOrder::WeakFirst, Start::Empty),
    ];
    let other = |(policy, eviction, touch, start): (_, &str, _, _)| RoutingOptions {
        eviction: eviction.parse().unwrap(),
        touch,
        start,
        ..routing(policy)
    };
    POLICIES.into_iter().map(routing).chain(others.map(other))
}

fn open(path: &Path, routing: RoutingOptions, chunk: usize, memory: Budget) -> Arc<Engine> {
    let options = EngineOptions {
        cpu: CpuOptions { threads: Some(2), ..CpuOptions::default() },
        memory,
        capacity: Some(Capacity::Experts(6)),
        chunk: Some(chunk),
        routing,
        logit_rows: 8,
        ..EngineOptions::default()
    };
    Arc::new(Engine::open(path, &options).unwrap())
}

/// The experts chosen for each token and layer, strongest first.
type Selections = BTreeMap<(usize, usize), Vec<u32>>;

/// Writes down what is chosen.
#[derive(Clone, Default)]
struct Chosen {
    /// Tokens before the step, and with it.
    done: (usize, usize),
    selections: Arc<Mutex<Selections>>,
}

impl RoutingObserver for Chosen {
    fn begin(&mut self, step: &ObservedStep<'_>) {
        self.done = (self.done.1, self.done.1 + step.tokens.len());
    }

    fn routed(&mut self, layer: usize, token: usize, _: &[f32], selection: &Selection) {
        let place = (self.done.0 + token, layer);
        assert!(
            self.selections.lock().unwrap().insert(place, selection.ranked().to_vec()).is_none(),
            "{place:?} twice"
        );
    }

    fn end(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

/// Logits of every token as bits, what was chosen and counted, and which experts are cached at the end.
type Outcome = (Vec<u32>, Selections, Counts, Vec<Vec<u32>>);

fn outcome(mut session: Session, tokens: &[u32], batched: bool) -> Outcome {
    let chosen = Chosen::default();
    session.observe(Box::new(chosen.clone()));
    let mut bits = Vec::new();
    let mut receive = |logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
    if batched {
        session.score(tokens, &mut |_, logits| receive(logits)).unwrap();
    } else {
        for &token in tokens {
            session.decode(token).unwrap();
            receive(session.logits());
        }
    }
    let routing = session.routing();
    let mut counts = routing.total(Phase::Prompt);
    counts += routing.total(Phase::Generation);
    let cached = (0..routing.layer_count()).map(|layer| routing.cached(layer).collect()).collect();
    let selections = std::mem::take(&mut *chosen.selections.lock().unwrap());
    assert_eq!(selections.len(), tokens.len() * routing.layer_count());
    (bits, selections, counts, cached)
}

#[test]
fn every_policy_gives_the_same_bits_however_tokens_come_and_wherever_experts_are() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let mut seen = Vec::new();
    let whole = model.tokens.len();
    for routing in routings() {
        let run = |chunk, memory, batched| {
            let engine = open(&model.path, routing.clone(), chunk, memory);
            outcome(Session::new(&engine).unwrap(), &model.tokens, batched)
        };
        let expected = run(whole, Budget::All, true);
        assert!(expected.2.changed > 0, "{routing:?} changed nothing: {:?}", expected.2);
        for (chunk, memory, batched) in [
            (whole, Budget::Auto, true),
            (64, Budget::All, true),
            (7, Budget::Auto, true),
            (1, Budget::All, true),
            (whole, Budget::Auto, false),
        ] {
            assert!(run(chunk, memory, batched) == expected, "{routing:?}: chunks of {chunk}, {memory:?}, {batched}");
        }
        assert!(!seen.contains(&expected.0), "{routing:?} computes what another one does");
        seen.push(expected.0);
    }
}

/// Nothing about time shows: how many threads compute, who reads, what is guessed ahead, and reads that come back late and in pieces.
#[test]
fn neither_threads_nor_the_device_nor_late_reads_change_a_lossy_run() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let cases = [
        ("cache-prior:lambda=0.5,j=1", "lru"),
        ("max-rank", "lfu:memory=64"),
        ("cumulative:p=0.9,j=1", "s3fifo"),
        ("drop-cold:j=1", "score:memory=16"),
    ];
    for (policy, eviction) in cases {
        let run = |threads, memory, backend, prefetch, late| {
            let faults = Faults { short: late, delays: late, ..Faults::default() };
            let options = EngineOptions {
                cpu: CpuOptions { threads: Some(threads), ..CpuOptions::default() },
                memory,
                capacity: Some(Capacity::Experts(6)),
                routing: RoutingOptions { eviction: eviction.parse().unwrap(), ..routing(policy) },
                prefetch,
                flash: FlashOptions {
                    backend,
                    depth: Some(8),
                    faults: Some(Arc::new(Mutex::new(faults))),
                    ..FlashOptions::default()
                },
                logit_rows: 8,
                ..EngineOptions::default()
            };
            let engine = Arc::new(Engine::open(&model.path, &options).unwrap());
            assert_eq!(engine.plan().streams(), memory == Budget::Auto);
            outcome(Session::new(&engine).unwrap(), &model.tokens, false)
        };
        let expected = run(1, Budget::All, Backend::Pread, Prefetch::Off, 0.0);
        assert!(expected.2.changed > 0, "{policy} changed nothing: {:?}", expected.2);
        for (threads, backend, prefetch, late) in [
            (1, Backend::Pread, Prefetch::Off, 0.4),
            (2, Backend::Auto, Prefetch::NextLayer, 0.0),
            (3, Backend::Auto, Prefetch::Speculate, 0.4),
            (2, Backend::Pread, Prefetch::Speculate, 0.2),
        ] {
            assert!(
                run(threads, Budget::Auto, backend, prefetch, late) == expected,
                "{policy}, {eviction}: {threads} threads, {backend}, {prefetch:?}, {late} late"
            );
        }
    }
}

#[test]
fn a_policy_without_strength_is_the_model_itself() {
    let model = ModelFile::new("mixtral", Format::Q4_0);
    let run = |policy| {
        outcome(Session::new(&open(&model.path, routing(policy), 64, Budget::All)).unwrap(), &model.tokens, true)
    };
    let expected = run("original");
    for policy in ["cache-prior:lambda=0.000001", "max-rank:m=2", "cumulative:p=0", "max-rank:m=8,except=0:1"] {
        assert!(run(policy) == expected, "{policy}");
    }
    let left_out = run("cache-prior:lambda=0.5,except=1");
    assert!(left_out != expected && left_out == run("cache-prior:lambda=0.5:0"));
}

#[test]
fn sessions_may_have_routings_of_their_own_on_one_engine() {
    let model = ModelFile::new("qwen2moe", Format::Q4_0);
    let engine = open(&model.path, routing("original"), 64, Budget::All);
    for policy in POLICIES {
        let alone = open(&model.path, routing(policy), 64, Budget::All);
        let expected = outcome(Session::new(&alone).unwrap(), &model.tokens, true);
        let capacity = engine.plan().resolve_capacity(&Capacity::Experts(6)).unwrap();
        let own = Session::with_routing(&engine, &routing(policy), &capacity).unwrap();
        assert!(outcome(own, &model.tokens, true) == expected, "{policy}");
    }
    assert!(Session::with_routing(&engine, &routing("original"), &[1, 1]).is_err(), "fewer than K experts");
    assert!(Session::with_routing(&engine, &routing("max-rank:m=999"), &[6, 6]).is_err(), "M over N");
}
