//! Every case of the reference implementation, exactly: selections, misses, the bits of Δ, final recency, Belady's bound.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests do")]

use std::collections::HashMap;

use moce_routing::{
    CachePrior, Cumulative, DropCold, EvictionSpec, Lambda, LayerShape, MaxRank, Phase, Policy, Prune, RoutingOptions,
    Selection, SessionRouting, Start, Swap, TouchOrder, belady,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    scores: HashMap<String, Vec<Vec<f32>>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    scores: String,
    k: usize,
    capacity: usize,
    policy: GoldenPolicy,
    touch: String,
    eviction: GoldenEviction,
    start: Vec<u32>,
    /// Per token: the chosen by rank, and the misses among them by rank.
    steps: Vec<(Vec<u32>, Vec<u32>)>,
    misses: u64,
    delta_f64_after_7_23_47_tokens: Vec<String>,
    final_recency: Vec<u32>,
    belady_misses: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
enum GoldenPolicy {
    Original,
    Prune { k: usize },
    DropCold { j: usize },
    Swap { rank: usize, seed: u64 },
    MaxRank { m: usize, j: usize },
    Cumulative { p: f64, j: usize },
    CachePrior { lambda: f64, j: usize },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
enum GoldenEviction {
    Lru,
    Lfu { memory: u32 },
    Score { memory: u32 },
}

impl GoldenPolicy {
    fn policy(&self) -> Policy {
        match *self {
            Self::Original => Policy::Original,
            Self::Prune { k } => Policy::Prune(Prune { k: Some(k) }),
            Self::DropCold { j } => Policy::DropCold(DropCold { j: Some(j) }),
            Self::Swap { rank, seed } => Policy::Swap(Swap { rank, seed }),
            Self::MaxRank { m, j } => Policy::MaxRank(MaxRank { m: Some(m), j: Some(j) }),
            Self::Cumulative { p, j } => Policy::Cumulative(Cumulative { p, j: Some(j) }),
            Self::CachePrior { lambda, j } => {
                Policy::CachePrior(CachePrior { lambda: Lambda::Uniform(lambda), j: Some(j) })
            }
        }
    }
}

#[test]
fn all_cases_of_the_reference_pass_exactly() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/routing/policy_golden.json");
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(golden.cases.len(), 203);
    for (index, case) in golden.cases.iter().enumerate() {
        let name = format!("case {index}: {} {:?} {:?} {}", case.scores, case.policy, case.eviction, case.touch);
        check(case, &golden.scores[&case.scores], &name);
    }
}

fn check(case: &Case, scores: &[Vec<f32>], name: &str) {
    let shape = LayerShape { experts: scores[0].len(), experts_per_token: case.k, capacity: case.capacity };
    let policy = case.policy.policy();
    let options = RoutingOptions {
        policy: policy.clone(),
        prompt_policy: policy,
        eviction: match case.eviction {
            GoldenEviction::Lru => EvictionSpec::Lru,
            GoldenEviction::Lfu { memory } => EvictionSpec::Lfu { memory },
            GoldenEviction::Score { memory } => EvictionSpec::Score { memory },
        },
        touch: case.touch.parse::<TouchOrder>().unwrap(),
        start: Start::Given(vec![case.start.clone()]),
    };
    let mut session = SessionRouting::new(&[shape], options).unwrap();
    let mut selection = Selection::default();
    let mut requests = Vec::new();
    for (token, (row, (chosen, missed))) in scores.iter().zip(&case.steps).enumerate() {
        let phase = if token % 2 == 0 { Phase::Prompt } else { Phase::Generation };
        session.route(0, row, phase, &mut selection).unwrap();
        assert_eq!(selection.ranked(), chosen, "{name}, token {token}");
        assert_eq!(&selection.misses().collect::<Vec<_>>(), missed, "{name}, token {token}");
        let mut ascending = chosen.clone();
        ascending.sort_unstable();
        assert_eq!(selection.ascending(), ascending, "{name}, token {token}");
        if let Some(at) = [7, 23, 47].iter().position(|&tokens| tokens == token + 1) {
            let bits = format!("{:016x}", selection.range().to_bits());
            assert_eq!(bits, case.delta_f64_after_7_23_47_tokens[at], "{name}, token {token}");
        }
        requests.push(chosen.clone());
    }
    assert_eq!(case.steps.len(), scores.len(), "{name}");
    assert_eq!(session.cached(0).collect::<Vec<_>>(), case.final_recency, "{name}");
    let misses = session.total(Phase::Prompt).misses + session.total(Phase::Generation).misses;
    assert_eq!(misses, case.misses, "{name}");
    if let Some(expected) = case.belady_misses {
        let bound: u32 = belady(shape, &case.start, &requests).unwrap().iter().sum();
        assert_eq!(bound, expected, "{name}");
    }
}
