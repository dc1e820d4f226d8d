//! Choosing the knob: the policy and parameters with the fewest misses whose price stays within a stated limit.
//!
//! Everything is chosen on the first half of a text, and accepted by the second: the upper end of the 95 % interval of the rise of
//! perplexity must be within the limit there. What fails gives way to the next candidate, down to original routing.
//!
//! First one set of parameters for all layers: each family of policies is bisected for the strongest that keeps the limit. Then λ by
//! layer, falling or rising with depth, and capacities by layer, by marginal gain on the misses that the best policy shows at several capacities; the sum of slots stays.

mod profile;
mod search;

pub use profile::{Measured, Profile};

use crate::{Error, PerplexityOptions, PerplexityReport, perplexity_in};
use moce_engine::routing::{CachePrior, EvictionSpec, Lambda, Policy, RoutingOptions};
use moce_engine::{Capacity, Engine, Session};
use search::{Candidate, Family};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What to look for.
#[derive(Clone, Debug)]
pub struct TuneOptions {
    /// The rise of perplexity that is allowed, as a share.
    pub max_loss: f64,
    /// Experts logically cached in each MoE layer, before they are spread by layer.
    pub capacity: Capacity,
    /// Which cached expert leaves, and everything else about routing but the policy.
    pub base: RoutingOptions,
    /// How text is scored; `limit` counts for each half.
    pub perplexity: PerplexityOptions,
}

/// A step of the search, for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trial<'a> {
    /// On which half of the text.
    pub half: Half,
    /// The policy.
    pub policy: &'a Policy,
    /// Whether capacities differ by layer.
    pub by_layer: bool,
    /// Perplexity above original routing, as a share; the upper end of the interval on the second half.
    pub perplexity_rise: f64,
    /// Misses, as a share of the choices.
    pub miss_rate: f64,
}

/// A half of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Where parameters are chosen.
    First,
    /// Where they are accepted or refused.
    Second,
}

/// Finds a profile for the model of `engine`. `progress` is called after each trial.
///
/// # Errors
/// A half of the text is shorter than two windows, a step fails, or `progress` ends the work.
pub fn tune(
    engine: &Arc<Engine>,
    text: &str,
    options: &TuneOptions,
    progress: &mut dyn FnMut(&Trial<'_>) -> ControlFlow<()>,
) -> Result<Profile, Error> {
    let capacity = engine.plan().resolve_capacity(&options.capacity)?;
    let (first, second) = halves(text);
    let mut bench = Workbench { engine, options, progress };

    let original = bench.run(first, &Policy::Original, &capacity)?;
    let mut candidates = Vec::new();
    let mut strongest = |family: &Family| {
        family.strongest(&mut |policy| {
            let candidate = Candidate { policy, capacity: capacity.clone(), by_layer: false };
            let (candidate, report) = bench.trial(first, &original, candidate)?;
            let is_within = report.perplexity / original.perplexity - 1.0 <= options.max_loss;
            Ok((candidate, report, is_within))
        })
    };
    for family in Family::uniform(engine.plan()) {
        candidates.extend(strongest(&family)?);
    }
    let uniform = candidates.iter().find_map(|(candidate, _)| match &candidate.policy {
        Policy::CachePrior(CachePrior { lambda: Lambda::Uniform(lambda), .. }) => Some(*lambda),
        _ => None,
    });
    if let Some(lambda) = uniform {
        for family in Family::by_depth(lambda, capacity.len()) {
            candidates.extend(strongest(&family)?);
        }
    }
    candidates.sort_by(|one, other| one.1.miss_rate.total_cmp(&other.1.miss_rate));
    if let Some((best, _)) = candidates.first() {
        let spread = bench.spread(first, &best.policy, &capacity)?;
        if spread != capacity {
            let candidate = Candidate { policy: best.policy.clone(), capacity: spread, by_layer: true };
            let (candidate, seen) = bench.trial(first, &original, candidate)?;
            if seen.perplexity / original.perplexity - 1.0 <= options.max_loss {
                candidates.push((candidate, seen));
                candidates.sort_by(|one, other| one.1.miss_rate.total_cmp(&other.1.miss_rate));
            }
        }
    }
    bench.accept(second, candidates, &capacity)
}

/// The text cut in the middle, between words.
fn halves(text: &str) -> (&str, &str) {
    let middle = (text.len() / 2..text.len()).find(|&at| text.as_bytes()[at].is_ascii_whitespace());
    text.split_at(middle.unwrap_or(text.len()))
}

struct Workbench<'a> {
    engine: &'a Arc<Engine>,
    options: &'a TuneOptions,
    progress: &'a mut dyn FnMut(&Trial<'_>) -> ControlFlow<()>,
}

impl Workbench<'_> {
    fn run(&self, text: &str, policy: &Policy, capacity: &[usize]) -> Result<PerplexityReport, Error> {
        let base = self.options.base.clone();
        let routing = RoutingOptions { policy: policy.clone(), prompt_policy: policy.clone(), ..base };
        let mut session = Session::with_routing(self.engine, &routing, capacity)?;
        perplexity_in(&mut session, text, &self.options.perplexity, &mut |_, _, _| ControlFlow::Continue(()))
    }

    fn show(&mut self, half: Half, candidate: &Candidate, rise: f64, miss_rate: f64) -> Result<(), Error> {
        let Candidate { policy, by_layer, .. } = candidate;
        let trial = Trial { half, policy, by_layer: *by_layer, perplexity_rise: rise, miss_rate };
        if (self.progress)(&trial).is_break() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Runs a candidate on the first half.
    fn trial(
        &mut self,
        text: &str,
        original: &PerplexityReport,
        candidate: Candidate,
    ) -> Result<(Candidate, PerplexityReport), Error> {
        let report = self.run(text, &candidate.policy, &candidate.capacity)?;
        self.show(Half::First, &candidate, report.rise_over(original).rise(), report.miss_rate)?;
        Ok((candidate, report))
    }

    /// Capacities by layer with the same sum: slots go where they save most misses under this policy.
    fn spread(&self, text: &str, policy: &Policy, capacity: &[usize]) -> Result<Vec<usize>, Error> {
        let plan = self.engine.plan();
        let mut curves = vec![Vec::new(); capacity.len()];
        for share in search::CURVE_SHARES {
            let at = |(&capacity, &experts): (&usize, &usize)| {
                ((capacity as f64 * share).round() as usize).clamp(plan.experts_per_token, experts)
            };
            let capacities: Vec<usize> = capacity.iter().zip(&plan.experts).map(at).collect();
            let report = self.run(text, policy, &capacities)?;
            for ((curve, &capacity), layer) in curves.iter_mut().zip(&capacities).zip(&report.per_layer) {
                curve.push((capacity, layer.misses as f64));
            }
        }
        Ok(search::allocate(&curves, capacity, plan.experts_per_token))
    }

    /// The first candidate that the second half accepts.
    fn accept(
        &mut self,
        text: &str,
        candidates: Vec<(Candidate, PerplexityReport)>,
        capacity: &[usize],
    ) -> Result<Profile, Error> {
        let original = self.run(text, &Policy::Original, capacity)?;
        let own = Candidate { policy: Policy::Original, capacity: capacity.to_vec(), by_layer: false };
        let eviction: EvictionSpec = self.options.base.eviction;
        for (refused, candidate) in candidates.into_iter().map(|one| one.0).chain([own]).enumerate() {
            let report = self.run(text, &candidate.policy, &candidate.capacity)?;
            let rise = report.rise_over(&original);
            let upper = rise.interval().ok_or(Error::TooFewWindows { windows: report.window_nll.len() })?.high;
            self.show(Half::Second, &candidate, upper, report.miss_rate)?;
            if upper <= self.options.max_loss || candidate.policy == Policy::Original {
                let measured = Measured {
                    tokens: report.tokens,
                    perplexity_rise: rise.rise(),
                    perplexity_rise_upper: upper,
                    miss_rate: report.miss_rate,
                    original_miss_rate: original.miss_rate,
                    candidates_refused: refused,
                };
                let Candidate { policy, capacity, .. } = candidate;
                return Ok(Profile::new(self.engine, &policy, eviction, capacity, self.options.max_loss, measured));
            }
        }
        unreachable!("original routing is always accepted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_cut_between_words() {
        let (first, second) = halves("one two three four");
        assert_eq!((first, second), ("one two three", " four"));
        assert_eq!(halves("word"), ("word", ""));
        let (first, second) = halves("äöü äöü äöü");
        assert_eq!(format!("{first}{second}"), "äöü äöü äöü");
    }
}
