//! Choosing the knob: the policy and parameters with the fewest misses whose price stays within a stated limit.
//!
//! On the first half of a text each family of policies is searched for the strongest within the limit, and the family chosen that misses
//! least there. The second half is asked of its policies, from weak to strong: what it accepts has the upper end of the 95 % interval of its
//! rise within the limit, and the first refusal ends the questions, for who goes on asking is told yes by chance.
//!
//! For cache-prior, layers can differ far more in what a saved miss costs than in what there is to save: the dearest may keep the model's own
//! choice, what that frees may go into protecting fewer choices, and each of the others may lean by a λ of its own, set by its price. Last,
//! capacities by layer, by marginal gain on the misses that the best policy shows at several capacities; the memory that they take stays.

mod capacities;
mod profile;
mod search;
mod trials;

pub use profile::{Measured, Profile};
pub use search::LayerPrice;
pub use trials::Trials;

use crate::statistics::LEAST_UNITS;
use crate::{Error, PerplexityOptions, PerplexityReport, perplexity_in};
use moce_engine::routing::{CachePrior, Lambda, Policy, RoutingOptions, Start, default_protected};
use moce_engine::tokenizer::SpecialTokens;
use moce_engine::{Capacity, Engine, Session};
use search::{Family, Within};
use std::ops::ControlFlow;
use std::sync::Arc;
use trials::Part;

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

/// Capacities by layer are taken if they save at least this share of the misses of the strongest policy.
const WORTH_SPREADING: f64 = 0.01;

/// λ at which the price of leaning in a layer is measured, in so many windows: divergence needs far fewer than perplexity.
const PRICED_LAMBDA: f64 = 0.2;
const PRICED_WINDOWS: usize = 2;

/// Finds a profile for the model of `engine`. What `trials` knows is not run again; `show` is called after each step, `interrupted` asked
/// after each window.
///
/// # Errors
/// The model has no experts, caches do not start empty, a half of the text has fewer than eight windows, a step fails, or the work was
/// `interrupted`.
pub fn tune(
    engine: &Arc<Engine>,
    text: &str,
    options: &TuneOptions,
    trials: &mut Trials,
    interrupted: &dyn Fn() -> bool,
    show: &mut dyn FnMut(&TuneStep<'_>),
) -> Result<Profile, Error> {
    let (capacity, [first, second]) = prepare(engine, text, options)?;
    let mut bench = Workbench { engine, options, first, second, capacity, trials, interrupted, show };
    let layer_prices = bench.layer_prices()?;
    let (policies, capacity) = bench.search(&layer_prices)?;
    Ok(Profile { layer_prices, ..bench.accept(policies, &capacity)? })
}

/// The capacities and the halves of the text, if they are some to tune with.
fn prepare<'t>(engine: &Engine, text: &'t str, options: &TuneOptions) -> Result<(Vec<usize>, [&'t str; 2]), Error> {
    if engine.plan().experts.is_empty() {
        return Err(Error::NoExperts);
    }
    // A profile says nothing of them.
    if options.base.start != Start::Empty {
        return Err(Error::WarmStart);
    }
    let capacity = engine.plan().resolve_capacity(&options.capacity)?;
    let (first, second) = halves(text);
    for half in [first, second] {
        let tokens = engine.tokenizer().encode(half, SpecialTokens::AsText)?.len();
        check_windows(tokens, &options.perplexity)?;
    }
    Ok((capacity, [first, second]))
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
    if scorable / window >= LEAST_UNITS {
        return Ok(());
    }
    let is_limited = options.scorable(usize::MAX) / window < LEAST_UNITS;
    Err(Error::TooFewWindows { tokens: scorable, window, least: LEAST_UNITS, is_limited })
}

struct Workbench<'a> {
    engine: &'a Arc<Engine>,
    options: &'a TuneOptions,
    /// The halves of the text.
    first: &'a str,
    second: &'a str,
    /// The capacities that tuning begins with.
    capacity: Vec<usize>,
    trials: &'a mut Trials,
    interrupted: &'a dyn Fn() -> bool,
    show: &'a mut dyn FnMut(&TuneStep<'_>),
}

impl Workbench<'_> {
    fn run(&mut self, part: Part, policy: &Policy, capacity: &[usize]) -> Result<PerplexityReport, Error> {
        if let Some(report) = self.trials.get(part, policy, capacity) {
            return Ok(report.clone());
        }
        let base = self.options.base.clone();
        let routing = RoutingOptions { policy: policy.clone(), prompt_policy: policy.clone(), ..base };
        let mut session = Session::with_routing(self.engine, &routing, capacity)?;
        let options = &self.options.perplexity;
        let (text, options) = match part {
            Part::FirstHalf => (self.first, options.clone()),
            Part::SecondHalf => (self.second, options.clone()),
            Part::Beginning => {
                let limit = Some(options.limit.unwrap_or(usize::MAX).min(PRICED_WINDOWS * options.window));
                let kl = *policy != Policy::Original;
                (self.first, PerplexityOptions { limit, kl, ..options.clone() })
            }
        };
        let report = perplexity_in(&mut session, text, &options, &mut |_, _, _| match (self.interrupted)() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })?;
        self.trials.add(part, policy, capacity, report.clone())?;
        Ok(report)
    }

    /// What the first half says: the policies of the best family from weak to strong, with original routing in front, and the capacities to
    /// run them with.
    fn search(&mut self, prices: &[LayerPrice]) -> Result<(Vec<Policy>, Vec<usize>), Error> {
        let uniform = self.capacity.clone();
        let original = self.run(Part::FirstHalf, &Policy::Original, &uniform)?;
        let mut best: Option<(f64, Family, usize)> = None;
        let mut searched = self.best_cache_priors(&original, prices)?;
        for family in Family::others(self.engine.plan()) {
            searched.push((self.within_limit(&family, &original)?, family));
        }
        for (within, family) in searched {
            let is_better = best.as_ref().is_none_or(|(fewest, ..)| within.misses_at_limit < *fewest);
            if let Some(strongest) = within.strongest.filter(|_| is_better) {
                best = Some((within.misses_at_limit, family, strongest));
            }
        }
        let mut policies = vec![Policy::Original];
        policies.extend(best.iter().flat_map(|(_, family, strongest)| family.up_to(*strongest)));
        let capacity = self.spread_capacity(&original, &policies[policies.len() - 1])?;
        Ok((policies, capacity))
    }

    /// Looks for J and layers to leave out of cache-prior with one λ, then, with these, for a λ of each layer's own.
    fn best_cache_priors(
        &mut self,
        original: &PerplexityReport,
        prices: &[LayerPrice],
    ) -> Result<Vec<(Within, Family)>, Error> {
        let plan = self.engine.plan();
        let usual = default_protected(plan.experts.iter().copied().max().unwrap_or(0), plan.experts_per_token);
        let dearest: Vec<usize> = prices.iter().map(|price| price.layer).collect();
        let doubled = std::iter::successors(Some(1), |layers| Some(2 * layers)).take_while(|&n| n < dearest.len());
        let counts: Vec<usize> = std::iter::once(0).chain(doubled).collect();
        let (j, except, uniform) = search::fewest_misses(usual, &counts, &mut |j, layers| {
            let (j, except) = ((j < usual).then_some(j), &dearest[..layers]);
            let family = Family::cache_prior(j, except);
            let within = self.within_limit(&family, original)?;
            Ok((within.misses_at_limit, (j, except, (within, family))))
        })?;
        if prices.is_empty() {
            return Ok(vec![uniform]);
        }
        let family = Family::cache_prior_by_layer(j, except, prices);
        Ok(vec![uniform, (self.within_limit(&family, original)?, family)])
    }

    fn within_limit(&mut self, family: &Family, original: &PerplexityReport) -> Result<Within, Error> {
        let (limit, uniform) = (self.options.max_loss, self.capacity.clone());
        family.within(limit, original.miss_rate, &mut |policy| self.trial(original, &policy, &uniform))
    }

    /// What leaning costs and saves in one layer alone, on the text's beginning; the dearest first. Nothing for a model of one layer.
    fn layer_prices(&mut self) -> Result<Vec<LayerPrice>, Error> {
        let layers = self.capacity.len();
        if layers == 1 {
            return Ok(Vec::new());
        }
        let capacity = self.capacity.clone();
        let original = self.run(Part::Beginning, &Policy::Original, &capacity)?;
        let mut prices = Vec::with_capacity(layers);
        for layer in 0..layers {
            let others = (0..layers).filter(|&other| other != layer).collect();
            let policy =
                Policy::CachePrior(CachePrior { lambda: Lambda::Uniform(PRICED_LAMBDA), j: None }).except(others);
            let report = self.run(Part::Beginning, &policy, &capacity)?;
            let misses = |report: &PerplexityReport| report.per_layer[layer].misses as f64 / report.tokens as f64;
            let kl = report.divergence.as_ref().map_or(0.0, |divergence| divergence.kl_mean);
            let price = LayerPrice { layer, kl, misses_saved: misses(&original) - misses(&report) };
            (self.show)(&TuneStep::Layer(price));
            prices.push(price);
        }
        Ok(search::dearest_first(prices))
    }

    /// Runs a policy on the first half: how much perplexity rises, and what is missed.
    fn trial(&mut self, original: &PerplexityReport, policy: &Policy, capacity: &[usize]) -> Result<(f64, f64), Error> {
        let report = self.run(Part::FirstHalf, policy, capacity)?;
        let (perplexity_rise, miss_rate) = (report.rise_over(original).rise(), report.miss_rate);
        let by_layer = capacity != self.capacity;
        (self.show)(&TuneStep::Trial(Trial { half: Half::First, policy, by_layer, perplexity_rise, miss_rate }));
        Ok((perplexity_rise, miss_rate))
    }

    /// Capacities by layer where they save misses under this policy and keep the limit, else those that tuning began with.
    fn spread_capacity(&mut self, original: &PerplexityReport, policy: &Policy) -> Result<Vec<usize>, Error> {
        let uniform = self.capacity.clone();
        let spread = self.spread(policy)?;
        if spread == uniform {
            return Ok(uniform);
        }
        let misses = self.run(Part::FirstHalf, policy, &uniform)?.miss_rate;
        let (rise, spread_misses) = self.trial(original, policy, &spread)?;
        let is_worth_it = rise <= self.options.max_loss && spread_misses <= (1.0 - WORTH_SPREADING) * misses;
        Ok(if is_worth_it { spread } else { uniform })
    }

    /// Capacities by layer in the same memory: slots go where they save most misses under this policy.
    fn spread(&mut self, policy: &Policy) -> Result<Vec<usize>, Error> {
        let (plan, uniform) = (self.engine.plan(), self.capacity.clone());
        let mut curves = vec![Vec::new(); uniform.len()];
        for share in capacities::CURVE_SHARES {
            let at = |(&capacity, &experts): (&usize, &usize)| {
                ((capacity as f64 * share).round() as usize).clamp(plan.experts_per_token, experts)
            };
            let capacity: Vec<usize> = uniform.iter().zip(&plan.experts).map(at).collect();
            let report = self.run(Part::FirstHalf, policy, &capacity)?;
            for ((curve, &capacity), layer) in curves.iter_mut().zip(&capacity).zip(&report.per_layer) {
                curve.push((capacity, layer.misses as f64));
            }
        }
        Ok(capacities::allocate(&curves, &plan.expert_bytes, &uniform, plan.experts_per_token))
    }

    /// A profile of the strongest that the second half accepts, if that saves misses there; else of original routing.
    fn accept(&mut self, policies: Vec<Policy>, capacity: &[usize]) -> Result<Profile, Error> {
        let uniform = self.capacity.clone();
        let by_layer = capacity != uniform;
        let original = self.run(Part::SecondHalf, &Policy::Original, &uniform)?;
        let accepted = search::last_accepted(policies, &mut |policy| {
            let report = self.run(Part::SecondHalf, policy, capacity)?;
            let (rise, miss_rate) = (report.rise_over(&original), report.miss_rate);
            let upper = rise.interval().expect("several windows have an interval").high;
            let trial = Trial { half: Half::Second, policy, by_layer, perplexity_rise: upper, miss_rate };
            (self.show)(&TuneStep::Trial(trial));
            Ok((upper <= self.options.max_loss).then(|| (rise.rise(), upper, report)))
        })?;
        let saving = accepted.filter(|(_, (.., report))| report.miss_rate < original.miss_rate);
        let (perplexity_rise, perplexity_rise_upper, report, capacity) = match saving {
            Some((_, (rise, upper, report))) => (rise, upper, report, capacity.to_vec()),
            None => (0.0, 0.0, original.clone(), uniform),
        };
        let measured = Measured {
            tokens: report.tokens,
            perplexity_rise,
            perplexity_rise_upper,
            miss_rate: report.miss_rate,
            changed_share: report.changed_share,
            original_miss_rate: original.miss_rate,
        };
        let (base, max_loss) = (&self.options.base, self.options.max_loss);
        Ok(Profile::new(self.engine, report.routing, base, capacity, max_loss, measured))
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

    /// A tiny model, a text, and what to look for.
    fn workbench() -> (Arc<Engine>, String, TuneOptions) {
        let options = EngineOptions { memory: Budget::All, sessions: 2, ..EngineOptions::default() };
        let engine = Arc::new(Engine::load(&TinyModel::open("qwen2moe").gguf, &options).unwrap());
        let options = TuneOptions {
            max_loss: 0.1,
            capacity: Capacity::Share(0.5),
            base: RoutingOptions::default(),
            perplexity: PerplexityOptions { window: 4, ..PerplexityOptions::default() },
        };
        let text = "The river rises in the hills above the town and runs through it to the sea. ".repeat(8);
        (engine, text, options)
    }

    #[test]
    fn an_interruption_does_not_wait_for_the_end_of_a_trial() {
        let (engine, text, options) = workbench();
        let windows = Cell::new(0);
        let interrupted = || windows.replace(windows.get() + 1) == 2;
        let mut show = |_: &TuneStep<'_>| panic!("no trial has ended");
        let options = TuneOptions { perplexity: PerplexityOptions { window: 2, ..options.perplexity }, ..options };
        let mut trials = Trials::default();
        // The first trial is two windows of original routing, which are no step to show; the third is of the next.
        let tuned = tune(&engine, &text, &options, &mut trials, &interrupted, &mut show);
        assert!(matches!(tuned, Err(Error::Interrupted)) && windows.get() == 3);
    }

    #[test]
    fn a_search_that_was_broken_off_goes_on_and_ends_the_same() {
        let (engine, text, options) = workbench();
        let folder = tempfile::tempdir().unwrap();
        let search = |name: &str, most: usize| {
            let mut trials = Trials::beside(&folder.path().join(name), &engine, &text, &options, false).unwrap();
            let windows = Cell::new(0);
            let interrupted = || windows.replace(windows.get() + 1) == most;
            let mut steps = Vec::new();
            let mut show = |step: &TuneStep<'_>| steps.push(format!("{step:?}"));
            let tuned = tune(&engine, &text, &options, &mut trials, &interrupted, &mut show);
            (tuned, windows.get(), steps, trials)
        };
        let (whole, windows, steps, trials) = search("whole", usize::MAX);
        trials.discard().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
        let half = windows / 2;
        let (broken_off, ..) = search("halved", half);
        assert!(matches!(broken_off, Err(Error::Interrupted)));
        let (resumed, rest, steps_again, _) = search("halved", usize::MAX);
        assert_eq!(resumed.unwrap(), whole.unwrap());
        assert_eq!(steps_again, steps);
        // The trial that was broken off is run again.
        let of_one_trial = windows.div_ceil(10);
        assert!((windows - half..windows - half + of_one_trial).contains(&rest), "{rest} of {windows}");
        let other = TuneOptions {
            base: RoutingOptions { eviction: "lfu".parse().unwrap(), ..options.base.clone() },
            ..options.clone()
        };
        let beside = Trials::beside(&folder.path().join("halved"), &engine, &text, &other, false);
        assert!(matches!(beside, Err(Error::OtherResults { .. })));
    }

    #[test]
    fn what_no_profile_can_say_is_refused() {
        let (engine, text, options) = workbench();
        let base = RoutingOptions { start: Start::First, ..options.base.clone() };
        let options = TuneOptions { base, ..options };
        let tuned = tune(&engine, &text, &options, &mut Trials::default(), &|| false, &mut |_| {});
        assert!(matches!(tuned, Err(Error::WarmStart)));
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
