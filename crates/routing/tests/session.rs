//! What a session does beside choosing: phases, counts, lifetimes, restarts, sigmoid routers, errors that change nothing; and
//! that policies fire at full strength and not at 1e-6.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests do")]

use moce_routing::{
    Counts, Error, EvictionSpec, EvictionState, LayerShape, LayerState, Phase, Policy, RouterScores, RoutingOptions,
    Selection, SessionRouting, Start, TouchOrder,
};

const SHAPE: LayerShape = LayerShape { experts: 4, experts_per_token: 2, capacity: 2 };

fn session(options: RoutingOptions) -> SessionRouting {
    SessionRouting::new(&[SHAPE], options).unwrap()
}

/// Scores that drift slowly with noise on top, like a router's over a text: experts stay wanted for a while.
fn drifting(experts: usize, tokens: usize) -> Vec<Vec<f32>> {
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
    (0..tokens).map(|_| row()).collect()
}

fn run(policy: &str, eviction: &str, rows: &[Vec<f32>]) -> (Counts, SessionRouting) {
    let shape = LayerShape { experts: rows[0].len(), experts_per_token: 4, capacity: rows[0].len() / 2 };
    let options = RoutingOptions {
        policy: policy.parse().unwrap(),
        eviction: eviction.parse().unwrap(),
        ..RoutingOptions::default()
    };
    let mut session = SessionRouting::new(&[shape], options).unwrap();
    let mut out = Selection::default();
    for row in rows {
        session.route(0, row, Phase::Generation, &mut out).unwrap();
    }
    (session.total(Phase::Generation), session)
}

#[test]
fn policies_fire_at_full_strength_and_not_at_next_to_none() {
    let rows = drifting(60, 500);
    let original = run("original", "lru", &rows).0;
    assert_eq!((original.changed, original.strongest_kept), (0, original.strongest));
    assert_eq!((original.tokens, original.own_selections, original.selections), (500, 2000, 2000));
    let faint = run("cache-prior:lambda=1e-6", "lru", &rows).0;
    assert_eq!((faint.changed, faint.misses), (0, original.misses));
    for policy in ["cache-prior:lambda=0.2", "max-rank", "cumulative:p=0.9", "drop-cold", "prune", "swap:rank=4,seed=1"]
    {
        let counts = run(policy, "lru", &rows).0;
        assert!(counts.changed > 100, "{policy} changed {} selections", counts.changed);
        if !policy.starts_with("swap") {
            assert!(
                counts.misses < original.misses,
                "{policy}: {} misses, original {}",
                counts.misses,
                original.misses
            );
        }
    }
    let strong = run("cache-prior:lambda=1", "lru", &rows).0;
    assert!(strong.misses * 5 < original.misses * 3);
    assert_eq!(strong.strongest_kept, strong.strongest);
    let unprotected = run("cache-prior:lambda=1,j=0", "lru", &rows).0;
    assert!(unprotected.strongest_kept < unprotected.strongest);
}

#[test]
fn lifetimes_and_misses_tell_the_same_story() {
    let rows = drifting(60, 500);
    for (policy, eviction) in [("original", "lru"), ("original", "s3fifo"), ("balanced", "score"), ("fast", "lfu")] {
        let (counts, session) = run(policy, eviction, &rows);
        let lifetimes = session.lifetimes(0);
        // From an empty start every miss admits, and every stay ends or goes on.
        assert_eq!(lifetimes.count, counts.misses);
        assert_eq!(lifetimes.still_cached, 30);
        assert!(lifetimes.mean() > 1.0 && lifetimes.standard_deviation() > 0.0);
        assert_eq!(session.usage(0).iter().sum::<u64>(), counts.selections);
    }
    let short = run("original", "lru", &rows).1.lifetimes(0).mean();
    assert!(run("cache-prior:lambda=0.5", "lru", &rows).1.lifetimes(0).mean() > 1.5 * short);
}

#[test]
fn a_lifetime_runs_from_token_end_to_token_end() {
    let mut session = session(RoutingOptions { start: Start::Given(vec![vec![0]]), ..RoutingOptions::default() });
    let mut out = Selection::default();
    // 0 from the start to the end of token 2; 1 from token 1 to 2; 2 and 3 from token 2 on.
    for selection in [[0, 1], [2, 3], [2, 3]] {
        session.replay(0, &selection, None, Phase::Prompt, &mut out).unwrap();
    }
    let lifetimes = session.lifetimes(0);
    assert_eq!((lifetimes.count, lifetimes.sum, lifetimes.still_cached), (4, 2 + 1 + 1 + 1, 2));
}

#[test]
fn what_a_start_puts_into_a_cache_has_no_lifetime_before_a_token() {
    let mut session = session(RoutingOptions { start: Start::First, ..RoutingOptions::default() });
    let mut out = Selection::default();
    assert_eq!(session.lifetimes(0).count, 0);
    session.restart_caches();
    for _ in 0..3 {
        session.replay(0, &[0, 1], None, Phase::Prompt, &mut out).unwrap();
    }
    let lifetimes = session.lifetimes(0);
    assert_eq!((lifetimes.count, lifetimes.sum, lifetimes.still_cached), (2, 6, 2));
    session.restart_caches();
    session.restart();
    assert_eq!(session.lifetimes(0), lifetimes);
}

#[test]
fn each_phase_has_its_policy_and_its_counts() {
    let options = RoutingOptions {
        policy: "cache-prior:lambda=1,j=0".parse().unwrap(),
        start: Start::Given(vec![vec![2, 3]]),
        ..RoutingOptions::default()
    };
    let (mut session, mut out) = (session(options), Selection::default());
    let scores = [1.0_f32, 0.9, 0.8, 0.0];
    let mut fork = session.clone();
    session.route(0, scores.as_slice(), Phase::Prompt, &mut out).unwrap();
    assert_eq!((out.ranked(), out.changed()), ([0, 1].as_slice(), 0));
    fork.route(0, scores.as_slice(), Phase::Generation, &mut out).unwrap();
    assert_eq!((out.ranked(), out.ranked_hits(), out.changed()), ([0, 2].as_slice(), [false, true].as_slice(), 1));
    assert_eq!((fork.total(Phase::Prompt).tokens, fork.total(Phase::Generation).tokens), (0, 1));
    assert_eq!((session.total(Phase::Prompt).misses, session.total(Phase::Generation).misses), (2, 0));
    // The prompt token counted for the range and touched the cache.
    assert_eq!((session.range(0), session.cached(0).collect::<Vec<_>>()), (1.0, vec![0, 1]));
}

#[test]
fn a_restart_empties_the_cache_and_keeps_the_range() {
    for eviction in [EvictionSpec::Lfu { memory: 4 }, EvictionSpec::Score { memory: 4 }, EvictionSpec::S3Fifo] {
        let (mut session, mut out) =
            (session(RoutingOptions { eviction, ..RoutingOptions::default() }), Selection::default());
        for scores in [[4.0_f32, 3.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]] {
            session.route(0, scores.as_slice(), Phase::Prompt, &mut out).unwrap();
        }
        session.restart_caches();
        let fresh = SessionRouting::new(&[SHAPE], session.options().clone()).unwrap().state(0);
        let state = session.state(0);
        assert_eq!((state.cached, state.eviction), (vec![], fresh.eviction));
        assert_eq!((state.tokens, state.range_sum, session.range(0)), (2, 7.0, 3.5));
        let lifetimes = session.lifetimes(0);
        assert_eq!((lifetimes.count, lifetimes.still_cached), (4, 2));
        session.clear_figures();
        assert_eq!((session.total(Phase::Prompt), session.lifetimes(0).count), (Counts::default(), 0));
        assert_eq!(session.usage(0), [0; 4]);
    }
}

#[test]
fn sigmoid_routers_sort_by_biased_and_average_unbiased_scores() {
    let options = RoutingOptions { eviction: EvictionSpec::Score { memory: 1 }, ..RoutingOptions::default() };
    let (mut session, mut out) = (session(options), Selection::default());
    let scores =
        RouterScores { sorting: &[9.0, 8.0, 1.0, 0.0], candidates: None, unbiased: Some(&[0.5, 0.0, 1.0, 0.5]) };
    session.route(0, scores, Phase::Prompt, &mut out).unwrap();
    assert_eq!(out.ranked(), [0, 1]);
    assert_eq!(session.state(0).eviction, EvictionState::Score(vec![0.25, 0.0, 0.5, 0.25]));
    let nothing = RouterScores { unbiased: Some(&[0.0; 4]), ..scores };
    session.route(0, nothing, Phase::Prompt, &mut out).unwrap();
    assert_eq!(session.state(0).eviction, EvictionState::Score(vec![0.0; 4]));
}

#[test]
fn a_layer_without_slots_misses_always() {
    let shape = LayerShape { capacity: 0, ..SHAPE };
    for eviction in ["lru", "lfu", "score", "s3fifo"] {
        let options = RoutingOptions {
            policy: "fast".parse().unwrap(),
            eviction: eviction.parse().unwrap(),
            start: Start::First,
            ..RoutingOptions::default()
        };
        let (mut session, mut out) = (SessionRouting::new(&[shape], options).unwrap(), Selection::default());
        for _ in 0..3 {
            session.route(0, [0.0_f32, 1.0, 2.0, 3.0].as_slice(), Phase::Generation, &mut out).unwrap();
            assert_eq!((out.ranked(), out.ranked_hits()), ([3, 2].as_slice(), [false, false].as_slice()));
        }
        assert_eq!((session.total(Phase::Generation).misses, session.cached(0).count()), (6, 0));
    }
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let options = RoutingOptions { eviction: EvictionSpec::Score { memory: 8 }, ..RoutingOptions::default() };
    let (mut session, mut out) = (session(options), Selection::default());
    session.route(0, [1.0_f32, 2.0, 3.0, 4.0].as_slice(), Phase::Prompt, &mut out).unwrap();
    let before = session.state(0);
    let plain = |sorting: &'static [f32]| RouterScores { sorting, candidates: None, unbiased: None };
    let good = plain(&[1.0, 2.0, 3.0, 4.0]);
    let bad = [
        (plain(&[1.0, 2.0, 3.0]), "3 scores for 4 experts"),
        (plain(&[1.0, f32::NAN, 3.0, 4.0]), "score of expert 1 is NaN"),
        (plain(&[1.0, 2.0, 3.0, f32::NEG_INFINITY]), "score of expert 3 is -inf"),
        (RouterScores { unbiased: Some(&[0.1]), ..good }, "1 unbiased scores for 4 experts"),
        (RouterScores { unbiased: Some(&[0.1, 0.1, -0.1, 0.1]), ..good }, "expected 0 or more"),
        (RouterScores { unbiased: Some(&[0.1, 0.1, f32::NAN, 0.1]), ..good }, "score of expert 2 is NaN"),
        (RouterScores { candidates: Some(&[1]), ..good }, "1 for 2 choices"),
        (RouterScores { candidates: Some(&[2, 1]), ..good }, "2 before 1, expected ascending"),
        (RouterScores { candidates: Some(&[1, 1]), ..good }, "1 before 1, expected ascending"),
        (RouterScores { candidates: Some(&[1, 4]), ..good }, "expert 4 of 4"),
    ];
    for (scores, message) in bad {
        let error = session.route(0, scores, Phase::Prompt, &mut out).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    for (selection, message) in
        [([0, 0].as_slice(), "twice"), (&[4], "expert 4 of 4"), (&[0, 1, 2], "3 experts where 2")]
    {
        let error = session.replay(0, selection, Some(good), Phase::Prompt, &mut out).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let error = session.replay(0, &[0, 1], None, Phase::Prompt, &mut out).unwrap_err();
    assert!(matches!(error, Error::NeedsScores { .. }));
    assert_eq!(session.route(1, good, Phase::Prompt, &mut out), Err(Error::NoSuchLayer { layer: 1, layers: 1 }));
    assert_eq!(session.state(0), before);
    assert_eq!(session.total(Phase::Prompt).tokens, 1);
}

#[test]
fn impossible_sessions_are_refused() {
    let shape = |experts, experts_per_token, capacity| LayerShape { experts, experts_per_token, capacity };
    for bad in [shape(0, 0, 0), shape(4, 0, 0), shape(4, 5, 0), shape(4, 2, 1), shape(4, 2, 5), shape(70_000, 2, 2)] {
        assert!(matches!(SessionRouting::new(&[bad], RoutingOptions::default()), Err(Error::Shape { .. })), "{bad:?}");
    }
    let with = |policy: &str| RoutingOptions { policy: policy.parse().unwrap(), ..RoutingOptions::default() };
    assert!(SessionRouting::new(&[SHAPE], with("max-rank:m=5")).is_err());
    assert!(SessionRouting::new(&[SHAPE, SHAPE], with("cache-prior:lambda=0.1:0.2")).is_ok());
    let error = SessionRouting::new(&[SHAPE], with("cache-prior:lambda=0.1:0.2")).unwrap_err();
    assert_eq!(error.to_string(), "cache-prior: lambda: 2 entries for 1 MoE layers");
    let eviction = EvictionSpec::Lfu { memory: 0 };
    assert!(SessionRouting::new(&[SHAPE], RoutingOptions { eviction, ..RoutingOptions::default() }).is_err());
    let start = Start::Given(vec![vec![0, 1, 2]]);
    assert!(SessionRouting::new(&[SHAPE], RoutingOptions { start, ..RoutingOptions::default() }).is_err());
}

#[test]
fn policies_can_be_exchanged_between_tokens() {
    let (mut session, mut out) = (session(RoutingOptions::default()), Selection::default());
    session.route(0, [0.0_f32, 0.1, 0.2, 0.3].as_slice(), Phase::Generation, &mut out).unwrap();
    assert!(session.set_policies("max-rank:m=9".parse().unwrap(), Policy::Original).is_err());
    assert!(session.set_policies("cache-prior:lambda=0.1:0.2".parse().unwrap(), Policy::Original).is_err());
    assert_eq!(session.options().policy, Policy::Original);
    session.set_policies("cache-prior:lambda=2,j=0".parse().unwrap(), Policy::Original).unwrap();
    session.route(0, [0.3_f32, 0.2, 0.1, 0.0].as_slice(), Phase::Generation, &mut out).unwrap();
    assert_eq!((out.ranked(), out.changed()), ([2, 3].as_slice(), 2));
    session.set_policies(Policy::Original, "prune:k=1".parse().unwrap()).unwrap();
    session.route(0, [0.3_f32, 0.2, 0.1, 0.0].as_slice(), Phase::Prompt, &mut out).unwrap();
    assert_eq!(out.ranked(), [0]);
    session.route(0, [0.3_f32, 0.2, 0.1, 0.0].as_slice(), Phase::Generation, &mut out).unwrap();
    assert_eq!(out.ranked(), [0, 1]);
}

#[test]
fn the_range_is_taken_in_f64() {
    let (mut session, mut out) = (session(RoutingOptions::default()), Selection::default());
    // In f32 the difference would round to 2^24.
    session.route(0, [16_777_216.0_f32, -1.0, 0.0, 0.0].as_slice(), Phase::Prompt, &mut out).unwrap();
    assert_eq!(out.range(), 16_777_217.0);
}

#[test]
fn lambda_may_differ_by_layer() {
    let options = RoutingOptions {
        policy: "cache-prior:lambda=0:2,j=0".parse().unwrap(),
        start: Start::First,
        touch: TouchOrder::WeakFirst,
        ..RoutingOptions::default()
    };
    let (mut session, mut out) = (SessionRouting::new(&[SHAPE; 2], options).unwrap(), Selection::default());
    let mut ranked = |layer| {
        session.route(layer, [0.0_f32, 0.1, 0.2, 0.3].as_slice(), Phase::Generation, &mut out).unwrap();
        out.ranked().to_vec()
    };
    assert_eq!((ranked(0), ranked(1)), (vec![3, 2], vec![1, 0]));
}

#[test]
fn hostile_states_are_refused_and_change_nothing() {
    let good = |eviction| LayerState { cached: vec![3, 1], tokens: 5, range_sum: 2.5, range_count: 4, eviction };
    let queues = |small: &[(u32, u8)], main: &[(u32, u8)], ghost: &[u32]| EvictionState::S3Fifo {
        small: small.to_vec(),
        main: main.to_vec(),
        ghost: ghost.to_vec(),
    };
    let lru = || good(EvictionState::Lru);
    let s3fifo = |small: &[(u32, u8)], main: &[(u32, u8)], ghost: &[u32]| good(queues(small, main, ghost));
    let cases = [
        (EvictionSpec::Lru, lru(), true),
        (EvictionSpec::Lru, LayerState { cached: vec![4], ..lru() }, false),
        (EvictionSpec::Lru, LayerState { cached: vec![1, 1], ..lru() }, false),
        (EvictionSpec::Lru, LayerState { cached: vec![0, 1, 2], ..lru() }, false),
        (EvictionSpec::Lru, LayerState { range_sum: f64::NAN, ..lru() }, false),
        (EvictionSpec::Lru, LayerState { range_sum: -1.0, ..lru() }, false),
        (EvictionSpec::Lru, LayerState { range_sum: 1e300, ..lru() }, false),
        (EvictionSpec::Lru, LayerState { range_count: 6, ..lru() }, false),
        (EvictionSpec::Lru, LayerState { tokens: u64::MAX, ..lru() }, false),
        (EvictionSpec::Lru, good(EvictionState::Lfu(vec![0.0; 4])), false),
        (EvictionSpec::Lfu { memory: 2 }, good(EvictionState::Lfu(vec![0.0, 1.0, 2.0, 3.0])), true),
        (EvictionSpec::Lfu { memory: 2 }, good(EvictionState::Lfu(vec![0.0; 3])), false),
        (EvictionSpec::Lfu { memory: 2 }, good(EvictionState::Score(vec![0.0; 4])), false),
        (EvictionSpec::Score { memory: 2 }, good(EvictionState::Score(vec![0.25; 4])), true),
        (EvictionSpec::Score { memory: 2 }, good(EvictionState::Score(vec![0.0, 0.0, f64::INFINITY, 0.0])), false),
        (EvictionSpec::Score { memory: 2 }, good(EvictionState::Score(vec![0.0, 0.0, -0.5, 0.0])), false),
        (EvictionSpec::S3Fifo, s3fifo(&[(1, 3)], &[(3, 0)], &[0, 2]), true),
        (EvictionSpec::S3Fifo, s3fifo(&[(1, 4)], &[(3, 0)], &[0]), false),
        (EvictionSpec::S3Fifo, s3fifo(&[(1, 0)], &[(2, 0)], &[0]), false),
        (EvictionSpec::S3Fifo, s3fifo(&[(1, 0)], &[(3, 0)], &[3]), false),
        (EvictionSpec::S3Fifo, s3fifo(&[(1, 0)], &[], &[]), false),
        (EvictionSpec::S3Fifo, s3fifo(&[(1, 0)], &[(9, 0)], &[]), false),
        (EvictionSpec::S3Fifo, s3fifo(&[(1, 0), (1, 0)], &[(3, 0)], &[]), false),
    ];
    for (eviction, state, fits) in cases {
        let (mut session, mut out) =
            (session(RoutingOptions { eviction, ..RoutingOptions::default() }), Selection::default());
        session.route(0, [1.0_f32, 2.0, 3.0, 4.0].as_slice(), Phase::Prompt, &mut out).unwrap();
        let before = session.state(0);
        assert_eq!(session.restore(0, &state).is_ok(), fits, "{eviction} {state:?}");
        assert_eq!(session.state(0), if fits { state } else { before });
    }
    let mut layer = session(RoutingOptions { eviction: EvictionSpec::S3Fifo, ..RoutingOptions::default() });
    assert!(layer.restore(1, &lru()).is_err());
    assert!(layer.restore(0, &s3fifo(&[(1, 0)], &[(3, 0)], &[0, 2])).is_ok());
}
