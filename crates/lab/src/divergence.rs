//! How far a policy moves what the model expects: Kullback-Leibler divergence D(original ‖ policy) in nats a token, how often both find the
//! same token likeliest, and the rise of perplexity. Both run over the same text side by side, a piece of a window at a time, so that
//! only a piece's logits are kept. All sums in f64, ids ascending.

use crate::Error;
use crate::likelihood::{PerplexityRise, likeliest, window_nll};
use crate::statistics::{Interval, bootstrap};
use moce_engine::Session;
use moce_engine::routing::{Policy, RoutingOptions};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most that a comparison with original routing takes beside its session, for the logits kept between the two passes: to be reserved in the
/// engine's memory plan (`EngineOptions::reserve`).
pub const KEPT_LOGITS_BYTES: usize = 16 << 20;

/// A policy beside original routing on the same text; intervals are at 95 %, by paired bootstrap over blocks of windows, and absent where there
/// are too few.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DivergenceReport {
    /// Mean of D(original ‖ policy) over the scored tokens, in nats.
    pub kl_mean: f64,
    /// Where that lies.
    pub kl_interval: Option<Interval>,
    /// Share of the scored tokens where both find the same token likeliest (ties: the lowest id).
    pub top1_agreement: f64,
    /// Where that lies.
    pub top1_agreement_interval: Option<Interval>,
    /// exp(nll / tokens) of original routing.
    pub original_perplexity: f64,
    /// Perplexity under the policy over that of original routing, minus 1.
    pub perplexity_rise: f64,
    /// Where that lies.
    pub perplexity_rise_interval: Option<Interval>,
    /// By window: the sum of D, in nats.
    pub window_kl: Vec<f64>,
    /// By window: tokens where both agree.
    pub window_agreements: Vec<usize>,
    /// By window: the sum of the negative log likelihoods of original routing, in nats.
    pub window_original_nll: Vec<f64>,
}

/// Original routing, running along.
pub(crate) struct Reference {
    session: Session,
    /// Tokens in a piece.
    rows: usize,
    /// Original routing's logits of a piece: `[rows, vocabulary]`.
    kept: Vec<f32>,
    kl: Vec<f64>,
    agreements: Vec<usize>,
    nll: Vec<f64>,
}

impl Reference {
    /// For a session with a policy: the same capacities, original routing.
    pub(crate) fn beside(session: &Session) -> Result<Reference, Error> {
        let routing = session.routing();
        let options =
            RoutingOptions { policy: Policy::Original, prompt_policy: Policy::Original, ..routing.options().clone() };
        let capacity: Vec<usize> = (0..routing.layer_count()).map(|layer| routing.shape(layer).capacity).collect();
        Ok(Reference {
            session: Session::with_routing(session.engine(), &options, &capacity)?,
            rows: (KEPT_LOGITS_BYTES / size_of_val(session.logits())).clamp(1, session.engine().chunk()),
            kept: Vec::new(),
            kl: Vec::new(),
            agreements: Vec::new(),
            nll: Vec::new(),
        })
    }

    /// Scores a window in both sessions and returns the policy's NLL. The first `context` tokens of `input` have no target.
    pub(crate) fn score(
        &mut self,
        policy: &mut Session,
        input: &[u32],
        context: usize,
        targets: &[u32],
    ) -> Result<f64, Error> {
        let Reference { session, rows, kept, .. } = self;
        session.restart();
        let engine = Arc::clone(session.engine());
        let cpu = engine.cpu();
        let vocabulary = session.logits().len();
        let (mut policy_nll, mut nll, mut kl, mut agreements) = (0.0, 0.0, 0.0, 0);
        for (index, piece) in input.chunks(*rows).enumerate() {
            kept.clear();
            session.score(piece, &mut |_, logits| kept.extend_from_slice(logits))?;
            policy.score(piece, &mut |position, logits| {
                let Some(target) = (index * *rows + position).checked_sub(context) else { return };
                let own = &kept[position * vocabulary..(position + 1) * vocabulary];
                let target = targets[target] as usize;
                let (own_log_sum, log_sum) = (cpu.log_sum_exp(own), cpu.log_sum_exp(logits));
                nll += own_log_sum - f64::from(own[target]);
                policy_nll += log_sum - f64::from(logits[target]);
                kl += cpu.divergence(own, own_log_sum, logits, log_sum);
                agreements += usize::from(likeliest(own) == likeliest(logits));
            })?;
        }
        self.kl.push(kl);
        self.agreements.push(agreements);
        self.nll.push(window_nll(nll, targets.len())?);
        Ok(policy_nll)
    }

    /// What was found; `policy_nll` is the policy's, by window.
    pub(crate) fn report(self, policy_nll: &[f64], window: usize) -> DivergenceReport {
        let windows = self.kl.len();
        let all: Vec<usize> = (0..windows).collect();
        let mean = |sums: &[f64], sample: &[usize]| {
            sample.iter().map(|&index| sums[index]).sum::<f64>() / (sample.len() * window) as f64
        };
        let agreements: Vec<f64> = self.agreements.iter().map(|&count| count as f64).collect();
        let kl = |sample: &[usize]| mean(&self.kl, sample);
        let agreement = |sample: &[usize]| mean(&agreements, sample);
        let rise = PerplexityRise::new(policy_nll, &self.nll, window);
        DivergenceReport {
            kl_mean: kl(&all),
            kl_interval: bootstrap(windows, kl),
            top1_agreement: agreement(&all),
            top1_agreement_interval: bootstrap(windows, agreement),
            original_perplexity: libm::exp(mean(&self.nll, &all)),
            perplexity_rise: rise.rise(),
            perplexity_rise_interval: rise.interval(),
            window_kl: self.kl,
            window_agreements: self.agreements,
            window_original_nll: self.nll,
        }
    }
}
