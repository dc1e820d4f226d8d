//! Choosing the knob: the policy and parameters with the fewest misses whose price stays within a stated limit.
//!
//! Candidates are found on the first half of a text, where perplexity rises by no more than the limit, and accepted by the second: the
//! upper end of the 95 % interval of the rise must be within the limit there. What is refused gives way to the candidate with the next
//! fewest misses, down to original routing; neighbours of a refused one are passed over, for who asks often enough is told yes by chance.
//!
//! Each family of policies is bisected for the strongest that keeps the limit, the same in all layers. For cache-prior, layers can differ far
//! more in what a saved miss costs than in what there is to save: the dearest may keep the model's own choice, and what that frees may go
//! into protecting fewer choices. Last, capacities by layer, by marginal gain on the misses that the best policy shows at several
//! capacities; the sum of slots stays.

mod profile;
mod search;

pub use profile::{Measured, Profile};
pub use search::LayerPrice;

use crate::{Error, PerplexityOptions, PerplexityReport, perplexity_in};
use moce_engine::routing::{CachePrior, Lambda, Policy, RoutingOptions, Start, default_protected};
use moce_engine::tokenizer::SpecialTokens;
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
pub enum TuneStep<'a> {
    /// A candidate ran.
    Trial(Trial<'a>),
    /// Leaning ran in one layer alone.
    Layer(LayerPrice),
}

/// What a candidate has shown.
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

/// The fewest windows in a half. The interval is by percentile bootstrap over windows, which is too narrow for a handful: of two windows
/// it is their range, and holds the true figure half of the time.
const LEAST_WINDOWS: usize = 8;

/// Candidates whose misses differ by no more than this share are neighbours: what the second half says of one holds for the other.
const NEIGHBOUR: f64 = 0.03;

/// λ at which the price of leaning in a layer is measured, in so many windows: divergence needs far fewer than perplexity.
const PRICED_LAMBDA: f64 = 0.2;
const PRICED_WINDOWS: usize = 2;

/// A candidate that keeps the limit on the first half, and its misses there.
struct Tried {
    candidate: Candidate,
    miss_rate: f64,
}

/// Finds a profile for the model of `engine`. `show` is called after each step, `interrupted` asked after each window.
///
/// # Errors
/// The model has no experts, the start is made for one capacity, a half of the text has fewer than eight windows, a step fails, or the work was `interrupted`.
pub fn tune(
    engine: &Arc<Engine>,
    text: &str,
    options: &TuneOptions,
    interrupted: &dyn Fn() -> bool,
    show: &mut dyn FnMut(&TuneStep<'_>),
) -> Result<Profile, Error> {
    if engine.plan().experts.is_empty() {
        return Err(Error::NoExperts);
    }
    // Its lists are as long as one capacity, and others are tried.
    if matches!(options.base.start, Start::Given(_)) {
        return Err(Error::StartOfOneCapacity);
    }
    let capacity = engine.plan().resolve_capacity(&options.capacity)?;
    let (first, second) = halves(text);
    for half in [first, second] {
        let tokens = engine.tokenizer().encode(half, SpecialTokens::AsText)?.len();
        check_windows(tokens, &options.perplexity)?;
    }
    let mut bench = Workbench { engine, options, first, second, capacity, interrupted, show };
    let prices = bench.layer_prices()?;
    let candidates = bench.candidates(&prices)?;
    Ok(Profile { layer_prices: prices, ..bench.accept(candidates)? })
}

/// The text cut in the middle, between words; between characters where the quarter behind the middle has no space, as in Chinese.
fn halves(text: &str) -> (&str, &str) {
    let middle = text.len() / 2;
    let behind = middle..(middle + text.len().div_ceil(4)).min(text.len());
    let space = behind.into_iter().find(|&at| text.as_bytes()[at].is_ascii_whitespace());
    let character = || (middle..text.len()).find(|&at| text.is_char_boundary(at));
    text.split_at(space.or_else(character).unwrap_or(text.len()))
}

/// Refuses a half of so many tokens if it has too few windows.
fn check_windows(tokens: usize, options: &PerplexityOptions) -> Result<(), Error> {
    let (scorable, window) = (options.scorable(tokens), options.window.max(1));
    if scorable / window >= LEAST_WINDOWS {
        return Ok(());
    }
    let is_limited = options.scorable(usize::MAX) / window < LEAST_WINDOWS;
    Err(Error::TooFewWindows { tokens: scorable, window, least: LEAST_WINDOWS, is_limited })
}

struct Workbench<'a> {
    engine: &'a Arc<Engine>,
    options: &'a TuneOptions,
    /// The halves of the text.
    first: &'a str,
    second: &'a str,
    /// The capacities that tuning begins with.
    capacity: Vec<usize>,
    interrupted: &'a dyn Fn() -> bool,
    show: &'a mut dyn FnMut(&TuneStep<'_>),
}

/// A family of policies, searched.
struct Searched {
    family: Family,
    /// Which step is the strongest that keeps the limit.
    strongest: Option<usize>,
    /// The fewest misses of those that keep it; infinite if none does.
    miss_rate: f64,
}

impl Searched {
    /// Ever weaker policies than the strongest that keeps the limit.
    fn weaker(&self) -> impl Iterator<Item = Policy> {
        self.strongest.into_iter().flat_map(|strongest| self.family.weaker(strongest))
    }
}

impl Workbench<'_> {
    fn run(&self, text: &str, policy: &Policy, capacity: &[usize]) -> Result<PerplexityReport, Error> {
        self.run_with(&self.options.perplexity, text, policy, capacity)
    }

    fn run_with(
        &self,
        options: &PerplexityOptions,
        text: &str,
        policy: &Policy,
        capacity: &[usize],
    ) -> Result<PerplexityReport, Error> {
        let base = self.options.base.clone();
        let routing = RoutingOptions { policy: policy.clone(), prompt_policy: policy.clone(), ..base };
        let mut session = Session::with_routing(self.engine, &routing, capacity)?;
        perplexity_in(&mut session, text, options, &mut |_, _, _| match (self.interrupted)() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    }

    /// What keeps the limit on the first half and saves misses there.
    fn candidates(&mut self, prices: &[LayerPrice]) -> Result<Vec<Tried>, Error> {
        let plan = self.engine.plan();
        let original = self.run(self.first, &Policy::Original, &self.capacity)?;
        let mut candidates = Vec::new();
        for family in Family::others(plan) {
            self.search(family, &original, &mut candidates)?;
        }
        let best = self.search_cache_prior(&original, prices, &mut candidates)?;
        for weaker in best.iter().flat_map(Searched::weaker) {
            if candidates.iter().all(|tried| tried.candidate.policy != weaker) {
                candidates.extend(self.trial(&original, Candidate::uniform(weaker, &self.capacity))?);
            }
        }
        let fewest = candidates.iter().min_by(|one, other| one.miss_rate.total_cmp(&other.miss_rate));
        if let Some(policy) = fewest.map(|fewest| fewest.candidate.policy.clone()) {
            let capacity = self.spread(&policy)?;
            if capacity != self.capacity {
                candidates.extend(self.trial(&original, Candidate { policy, capacity, by_layer: true })?);
            }
        }
        // A policy that saves nothing is no better than original routing.
        candidates.retain(|tried| tried.miss_rate < original.miss_rate);
        Ok(candidates)
    }

    /// Looks for λ, J and layers to leave out.
    fn search_cache_prior(
        &mut self,
        original: &PerplexityReport,
        prices: &[LayerPrice],
        candidates: &mut Vec<Tried>,
    ) -> Result<Option<Searched>, Error> {
        let plan = self.engine.plan();
        let usual = default_protected(plan.experts.iter().copied().max().unwrap_or(0), plan.experts_per_token);
        let dearest: Vec<usize> = prices.iter().map(|price| price.layer).collect();
        let doubled = std::iter::successors(Some(1), |layers| Some(2 * layers)).take_while(|&n| n < dearest.len());
        let counts: Vec<usize> = std::iter::once(0).chain(doubled).collect();
        search::fewest_misses(usual, &counts, &mut |j, layers| {
            let family = Family::cache_prior((j < usual).then_some(j), &dearest[..layers]);
            let searched = self.search(family, original, candidates)?;
            Ok((searched.miss_rate, searched))
        })
    }

    /// Bisects a family and adds what keeps the limit to the candidates.
    fn search(
        &mut self,
        family: Family,
        original: &PerplexityReport,
        candidates: &mut Vec<Tried>,
    ) -> Result<Searched, Error> {
        let capacity = self.capacity.clone();
        let within = family.within(&mut |policy| self.trial(original, Candidate::uniform(policy, &capacity)))?;
        let miss_rate = within.kept.iter().map(|tried| tried.miss_rate).fold(f64::INFINITY, f64::min);
        candidates.extend(within.kept);
        Ok(Searched { family, strongest: within.strongest, miss_rate })
    }

    /// What leaning costs and saves in one layer alone, on the text's beginning; the dearest first. Nothing for a model of one layer.
    fn layer_prices(&mut self) -> Result<Vec<LayerPrice>, Error> {
        let layers = self.capacity.len();
        if layers == 1 {
            return Ok(Vec::new());
        }
        let scored = &self.options.perplexity;
        let limit = scored.limit.unwrap_or(usize::MAX).min(PRICED_WINDOWS * scored.window);
        let sample = PerplexityOptions { limit: Some(limit), ..scored.clone() };
        let original = self.run_with(&sample, self.first, &Policy::Original, &self.capacity)?;
        let sample = PerplexityOptions { kl: true, ..sample };
        let mut prices = Vec::with_capacity(layers);
        for layer in 0..layers {
            let others = (0..layers).filter(|&other| other != layer).collect();
            let policy =
                Policy::CachePrior(CachePrior { lambda: Lambda::Uniform(PRICED_LAMBDA), j: None }).except(others);
            let report = self.run_with(&sample, self.first, &policy, &self.capacity)?;
            let misses = |report: &PerplexityReport| report.per_layer[layer].misses as f64 / report.tokens as f64;
            let kl = report.divergence.as_ref().map_or(0.0, |divergence| divergence.kl_mean);
            let price = LayerPrice { layer, kl, misses_saved: misses(&original) - misses(&report) };
            (self.show)(&TuneStep::Layer(price));
            prices.push(price);
        }
        Ok(search::dearest_first(prices))
    }

    fn show(&mut self, half: Half, candidate: &Candidate, perplexity_rise: f64, miss_rate: f64) {
        let Candidate { policy, by_layer, .. } = candidate;
        (self.show)(&TuneStep::Trial(Trial { half, policy, by_layer: *by_layer, perplexity_rise, miss_rate }));
    }

    /// Runs a candidate on the first half; `None` if it costs more than the limit there.
    fn trial(&mut self, original: &PerplexityReport, candidate: Candidate) -> Result<Option<Tried>, Error> {
        let report = self.run(self.first, &candidate.policy, &candidate.capacity)?;
        let rise = report.rise_over(original).rise();
        self.show(Half::First, &candidate, rise, report.miss_rate);
        Ok((rise <= self.options.max_loss).then_some(Tried { candidate, miss_rate: report.miss_rate }))
    }

    /// Capacities by layer with the same sum: slots go where they save most misses under this policy.
    fn spread(&self, policy: &Policy) -> Result<Vec<usize>, Error> {
        let (plan, capacity) = (self.engine.plan(), &self.capacity);
        let mut curves = vec![Vec::new(); capacity.len()];
        for share in search::CURVE_SHARES {
            let at = |(&capacity, &experts): (&usize, &usize)| {
                ((capacity as f64 * share).round() as usize).clamp(plan.experts_per_token, experts)
            };
            let capacities: Vec<usize> = capacity.iter().zip(&plan.experts).map(at).collect();
            let report = self.run(self.first, policy, &capacities)?;
            for ((curve, &capacity), layer) in curves.iter_mut().zip(&capacities).zip(&report.per_layer) {
                curve.push((capacity, layer.misses as f64));
            }
        }
        Ok(search::allocate(&curves, capacity, plan.experts_per_token))
    }

    /// The candidate with the fewest misses that the second half accepts; original routing if there is none.
    fn accept(&mut self, mut candidates: Vec<Tried>) -> Result<Profile, Error> {
        candidates.sort_by(|one, other| one.miss_rate.total_cmp(&other.miss_rate));
        let original = self.run(self.second, &Policy::Original, &self.capacity)?;
        let (mut refused, mut least_misses) = (0, 0.0);
        for Tried { candidate, miss_rate } in candidates {
            if miss_rate < least_misses {
                continue;
            }
            let report = self.run(self.second, &candidate.policy, &candidate.capacity)?;
            let rise = report.rise_over(&original);
            let upper = rise.interval().expect("several windows have an interval").high;
            self.show(Half::Second, &candidate, upper, report.miss_rate);
            if upper <= self.options.max_loss {
                return Ok(self.profile(candidate, &report, &original, (rise.rise(), upper), refused));
            }
            refused += 1;
            least_misses = (1.0 + NEIGHBOUR) * miss_rate;
        }
        let own = Candidate::uniform(Policy::Original, &self.capacity);
        Ok(self.profile(own, &original, &original, (0.0, 0.0), refused))
    }

    /// A profile with what the second half has shown: the rise of perplexity and the upper end of its interval, and how many candidates it
    /// refused.
    fn profile(
        &self,
        candidate: Candidate,
        report: &PerplexityReport,
        original: &PerplexityReport,
        (rise, upper): (f64, f64),
        refused: usize,
    ) -> Profile {
        let measured = Measured {
            tokens: report.tokens,
            perplexity_rise: rise,
            perplexity_rise_upper: upper,
            miss_rate: report.miss_rate,
            changed_share: Some(report.changed_share),
            original_miss_rate: original.miss_rate,
            candidates_refused: refused,
        };
        let Candidate { capacity, .. } = candidate;
        Profile::new(self.engine, report.routing.clone(), &self.options.base, capacity, self.options.max_loss, measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_engine::{Budget, EngineOptions};
    use moce_testkit::TinyModel;
    use std::cell::Cell;

    #[test]
    fn halves_are_cut_between_words() {
        let (first, second) = halves("one two three four");
        assert_eq!((first, second), ("one two three", " four"));
        assert_eq!(halves("word"), ("wo", "rd"));
        assert_eq!(halves("新年快乐\n"), ("新年", "快乐\n"), "a line end at the very end is no middle");
        assert_eq!(halves(""), ("", ""));
        let (first, second) = halves("äöü äöü äöü");
        assert_eq!(format!("{first}{second}"), "äöü äöü äöü");
    }

    #[test]
    fn an_interruption_does_not_wait_for_the_end_of_a_trial() {
        let options = EngineOptions { memory: Budget::All, ..EngineOptions::default() };
        let engine = Arc::new(Engine::load(&TinyModel::open("qwen2moe").gguf, &options).unwrap());
        let options = TuneOptions {
            max_loss: 0.1,
            capacity: Capacity::Share(0.5),
            base: RoutingOptions::default(),
            perplexity: PerplexityOptions { window: 4, ..PerplexityOptions::default() },
        };
        let text = "The river rises in the hills above the town and runs through it to the sea. ".repeat(8);
        let windows = Cell::new(0);
        let interrupted = || windows.replace(windows.get() + 1) == 2;
        let tuned = tune(&engine, &text, &options, &interrupted, &mut |_| panic!("no trial has ended"));
        assert!(matches!(tuned, Err(Error::Interrupted)) && windows.get() == 3);
    }

    #[test]
    fn what_is_too_little_text_is_said_with_what_helps() {
        let check = |tokens, window, limit| {
            check_windows(tokens, &PerplexityOptions { window, limit, ..PerplexityOptions::default() })
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(8 * 64 + 1, 64, None), Ok(()));
        let error = check(8 * 64, 64, None).unwrap_err();
        assert!(
            ["7 windows of 64", "a text of 1026 tokens, or --window 63,"].iter().all(|part| error.contains(part)),
            "{error}"
        );
        let error = check(9999, 64, Some(500)).unwrap_err();
        assert!(error.contains("--limit 512, or --window 62,"), "{error}");
        assert!(check(0, 64, None).unwrap_err().contains("(a text of 1026 tokens helps)"));
    }
}
