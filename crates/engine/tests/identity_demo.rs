//! One set of bits on real models, however they are streamed: the demo model, or the one that `MOCE_IDENTITY_MODEL` names, and a small one of
//! Mixtral's shape.
//!
//! Capacity, eviction, prefetch, chunk size, backend, threads and start are varied together in 16 runs: a covering design (an orthogonal
//! array over four symbols), in which every value of each meets every value of every other. Compared are the logits of all prompt
//! positions and of all decoded tokens with those of everything resident, bit by bit.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::routing::{Phase, RoutingOptions};
use moce_engine::{
    Backend, Budget, CacheState, Capacity, CpuOptions, Engine, EngineOptions, FlashOptions, Prefetch, Session,
};
use moce_testkit::{demo_model, mixtral_shape};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const PROMPT: &str =
    "Once upon a time there was a small engine that read its experts from flash, one by one, and never changed a bit.";
/// Tokens decoded one by one after the prompt.
const DECODED: usize = 12;
const CONTEXT: usize = 256;

/// How a run differs from the others.
#[derive(Clone, Debug)]
struct Way {
    capacity: usize,
    eviction: &'static str,
    prefetch: Prefetch,
    chunk: usize,
    backend: Backend,
    threads: usize,
    warm: bool,
}

/// The covering design, for N experts of which a token runs K. Over GF(4), the columns x, y, x + y, x + 2y and x + 3y of all (x, y) are
/// pairwise independent; the last one's four symbols are three independent pairs.
fn ways(experts: usize, per_token: usize) -> Vec<Way> {
    let double = |y: usize| [0, 2, 3, 1][y];
    let way = |x: usize, y: usize| {
        let last = x ^ double(y) ^ y;
        Way {
            capacity: [per_token, experts / 4, experts / 2, experts - 1][x].max(per_token),
            eviction: ["lru", "lfu", "s3fifo", "score"][y],
            prefetch: [Prefetch::Off, Prefetch::NextLayer, Prefetch::Speculate, Prefetch::Off][x ^ y],
            chunk: [1, 7, 16, CONTEXT][x ^ double(y)],
            backend: [Backend::Auto, Backend::Pread][last & 1],
            threads: [1, 2][last >> 1],
            warm: (last & 1) ^ (last >> 1) == 1,
        }
    };
    (0..16).map(|run| way(run / 4, run % 4)).collect()
}

#[test]
fn every_pair_of_ways_is_covered() {
    let ways = ways(60, 4);
    let symbols = |way: &Way| {
        let Way { capacity, eviction, prefetch, chunk, backend, threads, warm } = way;
        [
            capacity.to_string(),
            (*eviction).to_owned(),
            format!("{prefetch:?}"),
            chunk.to_string(),
            backend.to_string(),
            threads.to_string(),
            warm.to_string(),
        ]
    };
    let table: Vec<_> = ways.iter().map(symbols).collect();
    let values = |column: usize| table.iter().map(move |row| &row[column]).collect::<std::collections::BTreeSet<_>>();
    let counts: Vec<usize> = (0..7).map(|column| values(column).len()).collect();
    assert_eq!(counts, [4, 4, 3, 4, 2, 2, 2]);
    for a in 0..7 {
        for b in 0..a {
            let pairs: std::collections::BTreeSet<_> = table.iter().map(|row| (&row[a], &row[b])).collect();
            assert_eq!(pairs.len(), counts[a] * counts[b], "columns {a} and {b}");
        }
    }
}

/// Logits of every prompt position, then of every token decoded one by one, as bits.
fn bits(session: &mut Session, prompt: &[u32], decoded: &[u32]) -> Vec<u32> {
    let mut all = Vec::new();
    session.score(prompt, &mut |_, logits| all.extend(logits.iter().map(|x| x.to_bits()))).unwrap();
    for &token in decoded {
        session.decode(token).unwrap();
        all.extend(session.logits().iter().map(|x| x.to_bits()));
    }
    all
}

#[test]
fn no_way_of_streaming_changes_a_bit() {
    compare_all_ways(&std::env::var_os("MOCE_IDENTITY_MODEL").map_or_else(demo_model, PathBuf::from));
}

#[test]
fn nor_does_any_with_renormalised_weights_and_no_shared_expert() {
    compare_all_ways(&mixtral_shape());
}

fn compare_all_ways(path: &Path) {
    // Probes of flash are made once.
    let profiles = tempfile::tempdir().unwrap();
    let flash = FlashOptions { profiles: Some(profiles.path().join("flash.json")), ..FlashOptions::default() };
    let options = EngineOptions { context: Some(CONTEXT), logit_rows: 8, flash, ..EngineOptions::default() };
    let open = |options: &EngineOptions| Arc::new(Engine::open(path, options).unwrap());

    let resident = open(&EngineOptions { memory: Budget::All, chunk: Some(CONTEXT), ..options.clone() });
    assert!(!resident.plan().streams());
    let tokens = resident.tokenizer().encode_prompt(PROMPT).unwrap();
    let (prompt, decoded) = tokens.split_at(tokens.len() - DECODED);
    let expected = bits(&mut Session::new(&resident).unwrap(), prompt, decoded);
    let shape = resident.hyperparameters().experts.expect("a model with experts");
    drop(resident);

    for way in ways(shape.count, shape.per_token) {
        let started = Instant::now();
        let options = EngineOptions {
            cpu: CpuOptions { threads: Some(way.threads), ..CpuOptions::default() },
            memory: Budget::Auto,
            capacity: Some(Capacity::Experts(way.capacity)),
            routing: RoutingOptions { eviction: way.eviction.parse().unwrap(), ..RoutingOptions::default() },
            flash: FlashOptions { backend: way.backend, ..options.flash.clone() },
            prefetch: way.prefetch,
            chunk: Some(way.chunk),
            ..options.clone()
        };
        let state: Option<CacheState> = way.warm.then(|| {
            let mut earlier = Session::new(&open(&options)).unwrap();
            earlier.prompt(decoded).unwrap();
            earlier.cache_state().unwrap()
        });
        let engine = open(&options);
        assert!(engine.plan().streams(), "{way:?}");
        let mut session = Session::new(&engine).unwrap();
        if let Some(state) = &state {
            session.warm_start(state).unwrap();
        }
        let got = bits(&mut session, prompt, decoded);
        let misses = session.routing().total(Phase::Prompt).misses + session.routing().total(Phase::Generation).misses;
        assert!(misses > 0 && engine.traffic().flash_bytes > 0, "{way:?} streamed nothing");
        // Not `assert_eq`: millions of numbers would be printed.
        assert!(got == expected, "{way:?} changed a bit");
        println!("{way:?}: the same bits, {misses} misses, {} ms", started.elapsed().as_millis());
    }
}
