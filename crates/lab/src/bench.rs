//! Speed of prompts and of generation: the same work several times, each time by a new session.

use crate::{Error, Spread};
use moce_engine::routing::{Counts, RoutingOptions, ScoreReplay};
use moce_engine::{
    Engine, GenerateOptions, Generation, PhaseReport, Sampler, SamplerOptions, Session, StopReason, generate,
};
use serde::Serialize;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What is timed.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens generated after it.
    pub tokens: usize,
    /// How often.
    pub rounds: usize,
    /// Which experts run, one after the other in each round; the engine's capacity holds.
    pub routings: Vec<RoutingOptions>,
    /// Router scores that take the place of the model's own: random weights then route like a trained model.
    pub replay: Option<Arc<ScoreReplay>>,
    /// Seed of the sampler, the same in every round.
    pub seed: u64,
}

/// What was measured; spreads are over the rounds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BenchReport {
    /// The prompt.
    pub prompt: PhaseSpeed,
    /// What was generated.
    pub generation: PhaseSpeed,
}

/// Speed and cost of one phase.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PhaseSpeed {
    /// Tokens run in each round.
    pub tokens: usize,
    /// Tokens/s.
    pub tokens_per_second: Spread,
    /// Misses of the logical caches, as a share of the choices, over all rounds.
    pub miss_rate: f64,
    /// The model's own choices that a policy changed, as a share.
    pub changed_share: f64,
    /// Bytes read from flash a token.
    pub flash_bytes_per_token: f64,
    /// Share of the time in which computing waited for flash.
    pub waiting_share: f64,
    /// Bytes a second of demand reads while such were on the device; 0 where there were none.
    pub flash_rate: f64,
}

/// Runs `options.rounds` rounds and gives a report for each routing. A round has all of them in turn: what a shared machine does to one
/// it does to the others. `progress` is called before each round with its number, `interrupted` asked after each chunk of a prompt and each
/// token.
///
/// # Errors
/// Prompt and generation do not fit the context, a step fails, `progress` ends the work, or it was `interrupted`.
pub fn bench(
    engine: &Arc<Engine>,
    options: &BenchOptions,
    interrupted: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<BenchReport>, Error> {
    let generation = GenerateOptions { max_tokens: options.tokens + 1, ignore_end: true, ..GenerateOptions::default() };
    let sampling = SamplerOptions { seed: options.seed, ..SamplerOptions::default() };
    let mut rounds = vec![Vec::with_capacity(options.rounds); options.routings.len()];
    for round in 0..options.rounds.max(1) {
        if progress(round).is_break() || interrupted() {
            return Err(Error::Interrupted);
        }
        for (routing, rounds) in options.routings.iter().zip(&mut rounds) {
            let mut session = Session::with_routing(engine, routing, &engine.plan().capacity)?;
            if let Some(replay) = &options.replay {
                session.replay_scores(Arc::clone(replay))?;
            }
            let mut sampler = Sampler::new(sampling.clone(), engine.hyperparameters().vocabulary)?;
            let generated =
                generate(&mut session, &mut sampler, &options.prompt, &generation, &mut |_| match interrupted() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })?;
            // Also behind the last token, where `generate` no longer listens: half a bench is none.
            if generated.stop_reason == StopReason::Cancelled || interrupted() {
                return Err(Error::Interrupted);
            }
            rounds.push(generated);
        }
    }
    let report = |rounds: &Vec<Generation>| BenchReport {
        prompt: PhaseSpeed::new(rounds.iter().map(|round| &round.prompt)),
        generation: PhaseSpeed::new(rounds.iter().map(|round| &round.generation)),
    };
    Ok(rounds.iter().map(report).collect())
}

impl PhaseSpeed {
    fn new<'a>(rounds: impl Iterator<Item = &'a PhaseReport> + Clone) -> PhaseSpeed {
        let mut counts = Counts::default();
        rounds.clone().for_each(|round| counts += round.counts);
        let sum = |part: fn(&PhaseReport) -> f64| rounds.clone().map(part).sum::<f64>();
        let bytes = sum(|round| round.traffic.flash_bytes as f64);
        let demanded = sum(|round| round.traffic.demand_bytes as f64);
        let busy = sum(|round| round.traffic.flash_busy.as_secs_f64());
        PhaseSpeed {
            tokens: rounds.clone().next().map_or(0, |round| round.tokens),
            tokens_per_second: Spread::of(rounds.clone().map(PhaseReport::tokens_per_second)),
            miss_rate: counts.miss_rate(),
            changed_share: counts.changed_share(),
            flash_bytes_per_token: bytes / sum(|round| round.tokens as f64).max(1.0),
            waiting_share: sum(|round| round.traffic.waited.as_secs_f64()) / sum(|round| round.time.as_secs_f64()),
            flash_rate: if busy > 0.0 { demanded / busy } else { 0.0 },
        }
    }

    /// Mean number of experts that a layer with misses misses at once, if misses are independent.
    pub fn mean_burst(&self, experts_per_token: usize) -> f64 {
        let any = 1.0 - (1.0 - self.miss_rate).powi(experts_per_token as i32);
        if any > 0.0 { experts_per_token as f64 * self.miss_rate / any } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_engine::{Budget, EngineOptions};
    use moce_testkit::TinyModel;
    use std::cell::Cell;

    #[test]
    fn an_interruption_does_not_wait_for_the_end_of_a_round() {
        let TinyModel { gguf, tokens, .. } = TinyModel::open("qwen2moe");
        let options = EngineOptions { memory: Budget::All, ..EngineOptions::default() };
        let engine = Arc::new(Engine::load(&gguf, &options).unwrap());
        let options = BenchOptions {
            prompt: tokens[..4].to_vec(),
            tokens: 8,
            rounds: 1,
            routings: vec![engine.routing().clone()],
            replay: None,
            seed: 1,
        };
        let measure = |at: usize| {
            let asked = Cell::new(0);
            let interrupted = || asked.replace(asked.get() + 1) + 1 >= at;
            let measured = bench(&engine, &options, &interrupted, &mut |_| ControlFlow::Continue(()));
            (measured, asked.get())
        };
        let (whole, all) = measure(usize::MAX);
        assert!(whole.is_ok() && all > options.tokens, "asked {all} times");
        for at in 1..=all {
            let (broken_off, asked) = measure(at);
            assert!(matches!(broken_off, Err(Error::Interrupted)), "{at}");
            // The answer behind the last token comes late.
            assert!(asked <= at + 1, "{at}: asked {asked} times");
        }
    }
}
