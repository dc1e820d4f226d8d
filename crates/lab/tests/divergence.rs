//! Perplexity with `kl`: two sessions side by side give what each gives alone, and the distances are those of the full distributions.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::routing::{Policy, RoutingOptions};
use moce_engine::tokenizer::SpecialTokens;
use moce_engine::{Capacity, CpuOptions, Engine, EngineOptions, Session};
use moce_lab::{PerplexityOptions, perplexity};
use moce_testkit::TinyModel;
use std::ops::ControlFlow;
use std::sync::Arc;

const TEXT: &str = "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps on in the shade of the old tree until \
    evening; then it gets up, looks around, and goes home to eat what is left of the meal.";
const WINDOW: usize = 10;

fn open(policy: &str) -> Arc<Engine> {
    let policy = Policy::parse(policy, |_| unreachable!("no files")).unwrap();
    let options = EngineOptions {
        cpu: CpuOptions { threads: Some(1), ..CpuOptions::default() },
        capacity: Some(Capacity::Share(0.5)),
        sessions: 2,
        routing: RoutingOptions { prompt_policy: policy.clone(), policy, ..RoutingOptions::default() },
        chunk: Some(7), // so that windows are scored in pieces
        logit_rows: 3,
        ..EngineOptions::default()
    };
    Arc::new(Engine::load(&TinyModel::open("qwen2moe").gguf, &options).unwrap())
}

/// Log probabilities after every token of every window.
fn log_probabilities(engine: &Arc<Engine>, tokens: &[u32]) -> Vec<Vec<f64>> {
    let mut session = Session::new(engine).unwrap();
    let mut all = Vec::new();
    for window in tokens[..tokens.len() - 1].chunks_exact(WINDOW) {
        session.restart();
        session
            .score(window, &mut |_, logits| {
                let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
                all.push(logits.iter().map(|&z| f64::from(z) - sum.ln()).collect());
            })
            .unwrap();
    }
    all
}

fn highest(values: &[f64]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a))).unwrap()
}

#[test]
fn distances_are_those_of_the_full_distributions() {
    let (original, policy) = (open("original"), open("cache-prior:lambda=0.5,j=1"));
    let options = PerplexityOptions { window: WINDOW, kl: true, ..PerplexityOptions::default() };
    let report = perplexity(&policy, TEXT, &options, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    let divergence = report.divergence.unwrap();

    let tokens = policy.tokenizer().encode(TEXT, SpecialTokens::AsText).unwrap();
    let (p, q) = (log_probabilities(&original, &tokens), log_probabilities(&policy, &tokens));
    assert_eq!((p.len(), p.len() >= 8 * WINDOW), (report.tokens, true));
    let kl: f64 = p.iter().zip(&q).flat_map(|(p, q)| p.iter().zip(q)).map(|(p, q)| p.exp() * (p - q)).sum();
    let agreements = p.iter().zip(&q).filter(|(p, q)| highest(p) == highest(q)).count();
    let count = report.tokens as f64;
    assert!(kl > 0.0 && (divergence.kl_mean - kl / count).abs() < 1e-9 * kl, "{} {}", divergence.kl_mean, kl / count);
    assert_eq!(divergence.top1_agreement, agreements as f64 / count);

    let plain = PerplexityOptions { kl: false, ..options };
    let alone = |engine| perplexity(engine, TEXT, &plain, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(report.window_nll, alone(&policy).window_nll);
    assert_eq!(report.miss_rate, alone(&policy).miss_rate);
    let original = alone(&original);
    assert_eq!(divergence.window_original_nll, original.window_nll);
    let rise = report.perplexity / original.perplexity - 1.0;
    assert!((divergence.perplexity_rise - rise).abs() < 1e-12);
    let interval = divergence.perplexity_rise_interval.unwrap();
    assert!(interval.low <= rise && rise <= interval.high && interval.low < interval.high, "{interval:?}");
}

#[test]
fn original_routing_is_no_distance_from_itself() {
    let options = PerplexityOptions { window: WINDOW, kl: true, ..PerplexityOptions::default() };
    let divergence = perplexity(&open("original"), TEXT, &options, &mut |_, _, _| ControlFlow::Continue(()))
        .unwrap()
        .divergence
        .unwrap();
    assert_eq!((divergence.kl_mean, divergence.top1_agreement, divergence.perplexity_rise), (0.0, 1.0, 0.0));
}
