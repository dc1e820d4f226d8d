//! METHOD.md's properties of policies, caches and the bound, on random layers, scores and options.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests do")]

use moce_routing::{
    CachePrior, Cumulative, DropCold, EvictionSpec, Lambda, LayerShape, MaxRank, Phase, Policy, Prune, RouterScores,
    RoutingOptions, Selection, SessionRouting, Start, Swap, TouchOrder, belady,
};
use proptest::prelude::*;
use proptest::sample::select;

/// A layer, how it is routed, and the scores of its tokens.
#[derive(Debug, Clone)]
struct Run {
    shape: LayerShape,
    options: RoutingOptions,
    rows: Vec<Vec<f32>>,
}

impl Run {
    fn session(&self) -> SessionRouting {
        SessionRouting::new(&[self.shape], self.options.clone()).unwrap()
    }

    fn with_policy(&self, policy: Policy) -> Self {
        let options = RoutingOptions { policy, ..self.options.clone() };
        Self { options, ..self.clone() }
    }

    /// The selections by rank.
    fn selections(&self) -> Vec<Vec<u32>> {
        let (mut session, mut out) = (self.session(), Selection::default());
        let route = |row: &Vec<f32>| {
            session.route(0, row, Phase::Generation, &mut out).unwrap();
            out.ranked().to_vec()
        };
        self.rows.iter().map(route).collect()
    }

    /// Routes token by token and shows each: scores, experts by original rank, cached before, selection.
    fn each(
        &self,
        mut check: impl FnMut(&[f32], &[u32], &[u32], &Selection) -> Result<(), TestCaseError>,
    ) -> TestResult {
        let (mut session, mut out) = (self.session(), Selection::default());
        for row in &self.rows {
            let cached: Vec<u32> = session.cached(0).collect();
            session.route(0, row, Phase::Generation, &mut out).unwrap();
            check(row, &ranked(row), &cached, &out)?;
        }
        Ok(())
    }
}

type TestResult = Result<(), TestCaseError>;

/// All experts by original rank: a full sort that is stable in the id.
fn ranked(row: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    ids.sort_by(|&a, &b| row[b as usize].partial_cmp(&row[a as usize]).unwrap());
    ids
}

fn shapes() -> impl Strategy<Value = LayerShape> {
    (1_usize..34, 1_usize..7).prop_flat_map(|(experts, experts_per_token)| {
        let experts_per_token = experts_per_token.min(experts);
        prop_oneof![1 => Just(0), 9 => experts_per_token..=experts].prop_map(move |capacity| LayerShape {
            experts,
            experts_per_token,
            capacity,
        })
    })
}

/// Rows of smooth scores, and rows of few values, so that ties and signed zeros are common.
fn rows(experts: usize, tokens: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<f32>>> {
    let coarse = select(vec![-1.0_f32, -0.0, 0.0, 0.25, 0.5, 1.0, 4.0]);
    let row = prop_oneof![
        prop::collection::vec(-6.0_f32..6.0, experts),
        prop::collection::vec(coarse, experts),
        prop::collection::vec((-2.0_f32..2.0).prop_map(|score| 512.0 + score / 1024.0), experts),
    ];
    prop::collection::vec(row, tokens)
}

fn policies(shape: LayerShape) -> impl Strategy<Value = Policy> {
    let (experts, k) = (shape.experts, shape.experts_per_token);
    let j = prop::option::of(0..=experts);
    prop_oneof![
        Just(Policy::Original),
        (0..=k).prop_map(|k| Policy::Prune(Prune { k: Some(k) })),
        prop::option::of(1..=experts).prop_map(|j| Policy::DropCold(DropCold { j })),
        (1..=k, any::<u64>()).prop_map(|(rank, seed)| Policy::Swap(Swap { rank, seed })),
        (prop::option::of(0..=experts), j.clone()).prop_map(|(m, j)| Policy::MaxRank(MaxRank { m, j })),
        (0.0..=1.0, j.clone()).prop_map(|(p, j)| Policy::Cumulative(Cumulative { p, j })),
        (0.0..1.5, j).prop_map(|(lambda, j)| cache_prior(lambda, j)),
    ]
}

fn cache_prior(lambda: f64, j: Option<usize>) -> Policy {
    Policy::CachePrior(CachePrior { lambda: Lambda::Uniform(lambda), j })
}

fn evictions() -> impl Strategy<Value = EvictionSpec> {
    prop_oneof![
        Just(EvictionSpec::Lru),
        (1_u32..300).prop_map(|memory| EvictionSpec::Lfu { memory }),
        (1_u32..300).prop_map(|memory| EvictionSpec::Score { memory }),
        Just(EvictionSpec::S3Fifo),
    ]
}

fn options(shape: LayerShape) -> impl Strategy<Value = RoutingOptions> {
    let start = prop_oneof![Just(Start::Empty), Just(Start::First), any::<u64>().prop_map(Start::Random)];
    let touch = select(vec![TouchOrder::StrongFirst, TouchOrder::WeakFirst]);
    (policies(shape), policies(shape), evictions(), touch, start).prop_map(
        |(policy, prompt_policy, eviction, touch, start)| RoutingOptions {
            policy,
            prompt_policy,
            eviction,
            touch,
            start,
        },
    )
}

fn runs() -> impl Strategy<Value = Run> {
    shapes().prop_flat_map(|shape| {
        (Just(shape), options(shape), rows(shape.experts, 1..40)).prop_map(|(shape, options, rows)| Run {
            shape,
            options,
            rows,
        })
    })
}

/// J in effect for a policy that has one.
fn protected(policy: &Policy, shape: LayerShape) -> Option<usize> {
    match policy.resolved(shape.experts, shape.experts_per_token).unwrap() {
        Policy::DropCold(DropCold { j })
        | Policy::MaxRank(MaxRank { j, .. })
        | Policy::Cumulative(Cumulative { j, .. })
        | Policy::CachePrior(CachePrior { j, .. }) => j,
        _ => None,
    }
}

fn sorted(ids: &[u32]) -> Vec<u32> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

proptest! {
    #[test]
    fn selections_are_well_formed(run in runs()) {
        let LayerShape { experts, experts_per_token: k, .. } = run.shape;
        let policy = &run.options.policy;
        let sizes = match policy {
            Policy::Prune(prune) => prune.k.unwrap()..=prune.k.unwrap(),
            Policy::DropCold(_) => protected(policy, run.shape).unwrap()..=k,
            _ => k..=k,
        };
        run.each(|_, rank, _, out| {
            prop_assert!(sizes.contains(&out.ranked().len()));
            let distinct = out.ascending().windows(2).all(|pair| pair[0] < pair[1]);
            prop_assert!(distinct && out.ascending().iter().all(|&expert| (expert as usize) < experts));
            prop_assert_eq!(out.ascending(), sorted(out.ranked()));
            let by_rank: Vec<u32> = rank.iter().copied().filter(|expert| out.ranked().contains(expert)).collect();
            prop_assert_eq!(out.ranked(), by_rank);
            let own_that_ran = rank[..k].iter().filter(|expert| out.ranked().contains(expert)).count();
            prop_assert_eq!(out.changed(), k - own_that_ran);
            Ok(())
        })?;
    }

    #[test]
    fn the_strongest_are_protected(run in runs()) {
        let j = protected(&run.options.policy, run.shape).unwrap_or(0);
        run.each(|_, rank, _, out| {
            prop_assert!(rank[..j].iter().all(|expert| out.ranked().contains(expert)));
            Ok(())
        })?;
    }

    #[test]
    fn hits_are_what_was_cached_before_the_token(run in runs()) {
        run.each(|_, _, cached, out| {
            let hits = |ids: &[u32]| ids.iter().map(|expert| cached.contains(expert)).collect::<Vec<_>>();
            prop_assert_eq!(out.ranked_hits(), hits(out.ranked()));
            prop_assert_eq!(out.ascending_hits(), hits(out.ascending()));
            Ok(())
        })?;
    }

    #[test]
    fn the_cache_holds_the_token_and_never_more_than_its_capacity(run in runs()) {
        let (mut session, mut out) = (run.session(), Selection::default());
        for row in &run.rows {
            let mut expected: Vec<u32> = session.cached(0).collect();
            session.route(0, row, Phase::Generation, &mut out).unwrap();
            let cached: Vec<u32> = session.cached(0).collect();
            if run.shape.capacity == 0 {
                prop_assert!(cached.is_empty() && out.evicted().is_empty() && !out.ranked_hits().contains(&true));
                continue;
            }
            prop_assert!(cached.len() <= run.shape.capacity);
            // The token's experts end most recent, in touch order, and the rest keeps its order less the evicted.
            let touched: Vec<u32> = match run.options.touch {
                TouchOrder::StrongFirst => out.ranked().to_vec(),
                TouchOrder::WeakFirst => out.ranked().iter().rev().copied().collect(),
            };
            prop_assert!(!out.evicted().iter().any(|expert| touched.contains(expert) || !expected.contains(expert)));
            expected.retain(|expert| !touched.contains(expert) && !out.evicted().contains(expert));
            expected.extend(touched);
            prop_assert_eq!(&cached, &expected);
            prop_assert!((0..run.shape.experts as u32).all(|expert| session.is_cached(0, expert) == cached.contains(&expert)));
        }
    }

    #[test]
    fn at_no_strength_every_policy_is_original(run in runs(), extra in 0_usize..4, p in 0.0..=1.0) {
        let LayerShape { experts, experts_per_token: k, .. } = run.shape;
        let original = run.with_policy(Policy::Original).selections();
        let all = Some((k + extra).min(experts));
        let j = protected(&run.options.policy, run.shape);
        let same = [
            cache_prior(0.0, j),
            cache_prior(0.7, all),
            Policy::MaxRank(MaxRank { m: Some(k.saturating_sub(extra)), j }),
            Policy::MaxRank(MaxRank { m: Some(experts), j: all }),
            Policy::Cumulative(Cumulative { p: 0.0, j }),
            Policy::Cumulative(Cumulative { p, j: all }),
            Policy::DropCold(DropCold { j: all }),
            Policy::Prune(Prune { k: Some(k) }),
        ];
        for policy in same {
            prop_assert_eq!(&run.with_policy(policy.clone()).selections(), &original, "{}", policy);
        }
    }

    #[test]
    fn excepted_layers_keep_the_own_choice_and_the_others_do_not_notice(run in runs(), excepted in 0_usize..2) {
        let shapes = [run.shape; 2];
        let selections = |policy: Policy| {
            let mut session = SessionRouting::new(&shapes, run.with_policy(policy).options).unwrap();
            let mut route = |layer: usize, row: &Vec<f32>| {
                let mut out = Selection::default();
                session.route(layer, row, Phase::Generation, &mut out).unwrap();
                out
            };
            [0, 1].map(|layer| run.rows.iter().map(|row| route(layer, row)).collect::<Vec<_>>())
        };
        let policy = &run.options.policy;
        let except = selections(policy.clone().except(vec![excepted]));
        let [everywhere, original] = [policy.clone(), Policy::Original].map(selections);
        prop_assert_eq!(&except[excepted], &original[excepted]);
        prop_assert_eq!(&except[1 - excepted], &everywhere[1 - excepted]);
    }

    #[test]
    fn cache_prior_displaces_only_by_a_higher_lifted_score(run in runs(), lambda in 0.0..1.5, j in 0_usize..4) {
        let LayerShape { experts, experts_per_token: k, .. } = run.shape;
        let j = j.min(experts);
        let run = run.with_policy(cache_prior(lambda, Some(j)));
        run.each(|row, rank, cached, out| {
            let bonus = (lambda * out.range()) as f32;
            let place = |expert: u32| rank.iter().position(|&other| other == expert).unwrap();
            let lifted = |expert: u32| {
                let warm = cached.contains(&expert) || place(expert) < j;
                if warm { row[expert as usize] + bonus } else { row[expert as usize] }
            };
            let beats = |a: u32, b: u32| lifted(a) > lifted(b) || (lifted(a) == lifted(b) && place(a) < place(b));
            for &inside in out.ranked() {
                prop_assert!(place(inside) < k || cached.contains(&inside));
                let outside = rank.iter().filter(|expert| !out.ranked().contains(expert));
                prop_assert!(outside.into_iter().all(|&outside| beats(inside, outside)));
            }
            Ok(())
        })?;
    }

    #[test]
    fn max_rank_runs_nothing_cold_while_something_warm_waits(run in runs(), m in 0_usize..34, j in 0_usize..4) {
        let (m, j) = (m.min(run.shape.experts), j.min(run.shape.experts));
        let run = run.with_policy(Policy::MaxRank(MaxRank { m: Some(m), j: Some(j) }));
        run.each(|_, rank, cached, out| {
            let window = rank.get(j..m).unwrap_or(&[]);
            let waits = window.iter().any(|expert| cached.contains(expert) && !out.ranked().contains(expert));
            let cold = rank[j..].iter().any(|expert| !cached.contains(expert) && out.ranked().contains(expert));
            prop_assert!(!(waits && cold));
            let reach = &rank[..run.shape.experts_per_token.max(m)];
            prop_assert!(out.ranked().iter().all(|expert| reach.contains(expert)));
            Ok(())
        })?;
    }

    #[test]
    fn belady_bounds_every_online_eviction(run in runs(), eviction in evictions()) {
        // The trace is fixed by one run; every eviction replays it from the same start, Belady too.
        let requests = run.selections();
        let start: Vec<u32> = run.session().cached(0).collect();
        let bound: u32 = belady(run.shape, &start, &requests).unwrap().iter().sum();
        let replayed = Run { options: RoutingOptions { eviction, ..run.options.clone() }, ..run.clone() };
        let (mut session, mut out) = (replayed.session(), Selection::default());
        for (row, request) in run.rows.iter().zip(&requests) {
            session.replay(0, request, Some(row.into()), Phase::Generation, &mut out).unwrap();
        }
        let counts = session.total(Phase::Generation);
        prop_assert!(u64::from(bound) <= counts.misses);
        prop_assert_eq!(counts.hits + counts.misses, requests.iter().map(|request| request.len() as u64).sum::<u64>());
    }

    #[test]
    fn replaying_a_run_repeats_its_state(run in runs()) {
        let (mut routed, mut replayed) = (run.session(), run.session());
        let (mut expected, mut out) = (Selection::default(), Selection::default());
        for row in &run.rows {
            routed.route(0, row, Phase::Generation, &mut expected).unwrap();
            replayed.replay(0, expected.ranked(), Some(row.into()), Phase::Generation, &mut out).unwrap();
            prop_assert_eq!(&out, &expected);
        }
        prop_assert_eq!(replayed.state(0), routed.state(0));
        prop_assert_eq!(replayed.total(Phase::Generation), routed.total(Phase::Generation));
    }

    #[test]
    fn layer_by_layer_equals_token_by_token(run in runs(), prompt in 0_usize..40) {
        // Two layers of one shape; the second gets the rows backwards.
        let shapes = [run.shape; 2];
        let mut chunked = SessionRouting::new(&shapes, run.options.clone()).unwrap();
        let mut single = chunked.clone();
        let tokens = run.rows.len();
        let row = |layer: usize, token: usize| &run.rows[if layer == 0 { token } else { tokens - 1 - token }];
        let phase = |token: usize| if token < prompt { Phase::Prompt } else { Phase::Generation };
        let mut out = Selection::default();
        let mut by_token = vec![Vec::new(); 2];
        for token in 0..tokens {
            for (layer, selections) in by_token.iter_mut().enumerate() {
                single.route(layer, row(layer, token), phase(token), &mut out).unwrap();
                selections.push(out.clone());
            }
        }
        for (layer, selections) in by_token.iter().enumerate() {
            for (token, expected) in selections.iter().enumerate() {
                chunked.route(layer, row(layer, token), phase(token), &mut out).unwrap();
                prop_assert_eq!(&out, expected);
            }
            prop_assert_eq!(chunked.state(layer), single.state(layer));
        }
        for phase in [Phase::Prompt, Phase::Generation] {
            prop_assert_eq!(chunked.total(phase), single.total(phase));
        }
    }

    #[test]
    fn a_saved_state_continues_as_if_never_stopped(run in runs(), at in 0_usize..40) {
        let at = at.min(run.rows.len());
        let (mut session, mut out) = (run.session(), Selection::default());
        for row in &run.rows[..at] {
            session.route(0, row, Phase::Generation, &mut out).unwrap();
        }
        // The fresh session starts with something else cached, which must not show.
        let options = RoutingOptions { start: Start::First, ..run.options.clone() };
        let mut restored = SessionRouting::new(&[run.shape], options).unwrap();
        restored.restore(0, &session.state(0)).unwrap();
        let mut snapshot = session.clone();
        let (mut again, mut cloned) = (Selection::default(), Selection::default());
        for row in &run.rows[at..] {
            session.route(0, row, Phase::Generation, &mut out).unwrap();
            restored.route(0, row, Phase::Generation, &mut again).unwrap();
            snapshot.route(0, row, Phase::Generation, &mut cloned).unwrap();
            prop_assert_eq!(&again, &out);
            prop_assert_eq!(&cloned, &out);
        }
        prop_assert_eq!(restored.state(0), session.state(0));
    }

    #[test]
    fn experts_outside_the_chosen_groups_might_as_well_not_exist(
        run in runs(),
        keep in prop::collection::vec(any::<bool>(), 34),
        noise in -9.0_f32..9.0,
    ) {
        // The run's layer, embedded in a larger one whose other experts are never candidates.
        let candidates: Vec<u32> = (0..).zip(keep.iter().cycle()).filter(|(_, keep)| **keep).map(|(expert, _)| expert)
            .take(if keep.contains(&true) { run.shape.experts } else { 0 }).collect();
        prop_assume!(candidates.len() == run.shape.experts);
        // `score` averages over all experts, in a group or not; J's default and M's depend on N: both are given here.
        prop_assume!(!run.options.eviction.needs_scores());
        let resolve = |policy: &Policy| policy.resolved(run.shape.experts, run.shape.experts_per_token).unwrap();
        let larger = LayerShape { experts: candidates[candidates.len() - 1] as usize + 3, ..run.shape };
        let start: Vec<u32> = run.session().cached(0).collect();
        let outer = |expert: u32| candidates[expert as usize];
        let options = RoutingOptions {
            policy: resolve(&run.options.policy),
            start: Start::Given(vec![start.iter().map(|&expert| outer(expert)).collect()]),
            ..run.options.clone()
        };
        let options = RoutingOptions { prompt_policy: Policy::Original, ..options };
        let mut grouped = SessionRouting::new(&[larger], options).unwrap();
        let (mut plain, mut expected, mut out) = (run.session(), Selection::default(), Selection::default());
        for row in &run.rows {
            let mut sorting = vec![noise; larger.experts];
            for (&score, &expert) in row.iter().zip(&candidates) {
                sorting[expert as usize] = score;
            }
            let scores = RouterScores { sorting: &sorting, candidates: Some(&candidates), unbiased: None };
            plain.route(0, row, Phase::Generation, &mut expected).unwrap();
            grouped.route(0, scores, Phase::Generation, &mut out).unwrap();
            let renamed: Vec<u32> = expected.ranked().iter().map(|&expert| outer(expert)).collect();
            prop_assert_eq!(out.ranked(), renamed);
            prop_assert_eq!(out.ranked_hits(), expected.ranked_hits());
            prop_assert_eq!(out.range().to_bits(), expected.range().to_bits());
            prop_assert_eq!(out.changed(), expected.changed());
        }
    }
}
