//! Where candidates come from: those of each family of policies that keep a limit, and layers by what leaning costs in them.

use crate::Error;
use moce_engine::MemoryPlan;
use moce_engine::routing::{CachePrior, Cumulative, Lambda, MaxRank, Policy};
use serde::{Deserialize, Serialize};

/// λ that are tried, each about 1.2 times the one before in the useful range: what lies between differs by less than a text can tell.
const LAMBDAS: [f64; 15] = [0.03, 0.05, 0.07, 0.1, 0.12, 0.14, 0.17, 0.2, 0.23, 0.26, 0.3, 0.35, 0.4, 0.5, 0.8];
/// Shares p that are tried.
const SHARES: [f64; 12] = [0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95];

/// A family of policies with one parameter.
pub(super) struct Family {
    /// Its values, from weak to strong.
    steps: Vec<f64>,
    make: Box<dyn Fn(f64) -> Policy>,
}

/// What the bisection of a family has met.
pub(super) struct Within {
    /// Which step is the strongest within the limit.
    pub(super) strongest: Option<usize>,
    /// Misses where the rise meets the limit, on a straight line between the strongest within and the one behind it: steps are coarse, and
    /// two families compare by what each would save at one price.
    pub(super) misses_at_limit: f64,
}

impl Family {
    /// Policies with one set of parameters for all layers, beside cache-prior.
    pub(super) fn others(plan: &MemoryPlan) -> [Family; 2] {
        let k = plan.experts_per_token;
        let most = plan.experts.iter().copied().min().unwrap_or(k);
        let ranks = (k + 1..=(4 * k).min(most)).map(|m| m as f64);
        [
            Family::new(ranks, |m| Policy::MaxRank(MaxRank { m: Some(m as usize), j: None })),
            Family::new(SHARES, |p| Policy::Cumulative(Cumulative { p, j: None })),
        ]
    }

    /// cache-prior by its λ, with J protected, where some layers keep the model's own choice.
    pub(super) fn cache_prior(j: Option<usize>, except: &[usize]) -> Family {
        let except = except.to_vec();
        Family::new(LAMBDAS, move |lambda| {
            Policy::CachePrior(CachePrior { lambda: Lambda::Uniform(lambda), j }).except(except.clone())
        })
    }

    /// The same with a λ of each layer's own: the step times what `prices` say of the layer, by [`lambda_weights`].
    pub(super) fn cache_prior_by_layer(j: Option<usize>, except: &[usize], prices: &[LayerPrice]) -> Family {
        let (except, weights) = (except.to_vec(), lambda_weights(prices, except));
        let rounded = |lambda: f64| (lambda * 1e4).round() / 1e4;
        Family::new(LAMBDAS, move |lambda| {
            let lambda = Lambda::PerLayer(weights.iter().map(|weight| rounded(lambda * weight)).collect());
            Policy::CachePrior(CachePrior { lambda, j }).except(except.clone())
        })
    }

    fn new(steps: impl IntoIterator<Item = f64>, make: impl Fn(f64) -> Policy + 'static) -> Family {
        Family { steps: steps.into_iter().collect(), make: Box::new(make) }
    }

    /// Bisects for the strongest of the family whose rise is within `limit`. `trial` runs one and gives rise and misses; original routing
    /// misses `original_misses`.
    pub(super) fn within(
        &self,
        limit: f64,
        original_misses: f64,
        trial: &mut dyn FnMut(Policy) -> Result<(f64, f64), Error>,
    ) -> Result<Within, Error> {
        let (mut low, mut high) = (0, self.steps.len());
        let (mut within, mut behind) = ((0.0, original_misses), None);
        while low < high {
            let middle = (low + high) / 2;
            let point = trial((self.make)(self.steps[middle]))?;
            if point.0 <= limit {
                (within, low) = (point, middle + 1);
            } else {
                (behind, high) = (Some(point), middle);
            }
        }
        let misses_at_limit = behind.map_or(within.1, |behind| {
            let share = (limit - within.0) / (behind.0 - within.0);
            within.1 + share * (behind.1 - within.1).min(0.0)
        });
        Ok(Within { strongest: low.checked_sub(1), misses_at_limit })
    }

    /// The policies up to step `strongest`, from weak to strong.
    pub(super) fn up_to(&self, strongest: usize) -> impl Iterator<Item = Policy> {
        self.steps[..=strongest].iter().map(|&step| (self.make)(step))
    }
}

/// The last before the first that is refused. A sequence that was fixed on other text, asked in order and no further than the first
/// refusal, accepts one that should be refused no more often than a single question does: to be wrong, the first such one must pass.
pub(super) fn last_accepted<C, T>(
    sequence: impl IntoIterator<Item = C>,
    ask: &mut dyn FnMut(&C) -> Result<Option<T>, Error>,
) -> Result<Option<(C, T)>, Error> {
    let mut last = None;
    for candidate in sequence {
        let Some(answer) = ask(&candidate)? else { break };
        last = Some((candidate, answer));
    }
    Ok(last)
}

/// What misses least over J and a number of layers that are left out. Fewer protected choices may pay only where layers are left out, so both
/// are searched together: from the `usual` J down while that leaves fewer misses, and for each J ever more layers (`counts`, ascending)
/// while that does. `search` gives misses for (J, layers).
pub(super) fn fewest_misses<T>(
    usual: usize,
    counts: &[usize],
    search: &mut dyn FnMut(usize, usize) -> Result<(f64, T), Error>,
) -> Result<T, Error> {
    let (mut fewest, mut best, mut of_best) = (f64::INFINITY, None, 0);
    for j in (0..=usual).rev() {
        let (so_far, mut of_fewer) = (fewest, f64::INFINITY);
        for (index, &layers) in counts.iter().enumerate().skip(of_best) {
            let (misses, found) = search(j, layers)?;
            if misses < fewest {
                (fewest, best, of_best) = (misses, Some(found), index);
            }
            if misses >= of_fewer {
                break;
            }
            of_fewer = misses;
        }
        if fewest >= so_far {
            break;
        }
    }
    Ok(best.expect("misses are finite, so that the first found is the best so far"))
}

/// What leaning in one layer alone costs and saves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LayerPrice {
    /// Index among the layers with experts.
    pub layer: usize,
    /// D(original ‖ policy), in nats a token.
    pub kl: f64,
    /// Misses of that layer saved, a token.
    pub misses_saved: f64,
}

/// Layers, the dearest first: by how much more divergence leaning in them costs than the misses that it saves cost on average.
pub(super) fn dearest_first(mut prices: Vec<LayerPrice>) -> Vec<LayerPrice> {
    let sum = |of: fn(&LayerPrice) -> f64| prices.iter().map(of).sum::<f64>();
    let (kl, misses_saved) = (sum(|price| price.kl), sum(|price| price.misses_saved));
    let usual = if misses_saved > 0.0 { kl / misses_saved } else { 0.0 };
    let excess = |price: &LayerPrice| price.kl - usual * price.misses_saved;
    prices.sort_by(|one, other| excess(other).total_cmp(&excess(one)));
    prices
}

/// How much stronger than λ, or weaker, a layer may lean by [`lambda_weights`].
const MOST_WEIGHT: f64 = 4.0;

/// What λ is multiplied by in each layer, so that another saved miss costs about the same in all that are not in `except` (1 there). λ lets
/// through changes that are larger in proportion, and a change costs by its square: with the number of changes, and of misses saved, growing
/// as λ^a, divergence grows as λ^(a + 2), and prices meet where λ goes with the square root of misses saved by divergence. 1 everywhere if
/// leaning costs or saves nothing on the whole.
fn lambda_weights(prices: &[LayerPrice], except: &[usize]) -> Vec<f64> {
    let kept = || prices.iter().filter(|price| !except.contains(&price.layer));
    let sum = |of: fn(&LayerPrice) -> f64| kept().map(of).sum::<f64>();
    let (kl, misses_saved) = (sum(|price| price.kl), sum(|price| price.misses_saved));
    let mut weights = vec![1.0; prices.len()];
    if kl <= 0.0 || misses_saved <= 0.0 {
        return weights;
    }
    for price in kept() {
        let share = (price.misses_saved.max(0.0) / misses_saved) / (price.kl.max(f64::MIN_POSITIVE) / kl);
        weights[price.layer] = share.sqrt().clamp(1.0 / MOST_WEIGHT, MOST_WEIGHT);
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_ordered_by_what_they_cost_beyond_the_usual_price() {
        let order = |prices: &[(f64, f64)]| {
            let prices = prices.iter().enumerate();
            let prices = prices.map(|(layer, &(kl, misses_saved))| LayerPrice { layer, kl, misses_saved });
            dearest_first(prices.collect()).iter().map(|price| price.layer).collect::<Vec<_>>()
        };
        // The last one saves nothing, but costs next to nothing, too.
        assert_eq!(order(&[(0.003, 1.0), (0.012, 1.2), (0.002, 1.0), (0.001, -0.1)]), [1, 3, 0, 2]);
        assert_eq!(order(&[(0.001, 0.0), (0.002, 0.0)]), [1, 0]);
    }

    #[test]
    fn layers_lean_more_where_it_is_cheap() {
        let prices = |prices: &[(f64, f64)]| {
            let prices = prices.iter().enumerate();
            let prices = prices.map(|(layer, &(kl, misses_saved))| LayerPrice { layer, kl, misses_saved });
            dearest_first(prices.collect())
        };
        // The first three share 0.021 nats and 1.05 misses; the last one saves nothing, so there is nothing to lean for.
        let five = prices(&[(0.016, 0.2), (0.004, 0.45), (0.001, 0.4), (0.9, 1.0), (0.0, 0.0)]);
        let weights = lambda_weights(&five, &[3]);
        let expected = [0.5, 1.5, 2.828_427_124_746_19, 1.0, 1.0 / MOST_WEIGHT];
        assert!(
            weights.iter().zip(expected).all(|(one, other): (&f64, f64)| (one - other).abs() < 1e-12),
            "{weights:?}"
        );
        let policy = Family::cache_prior_by_layer(Some(1), &[3], &five).up_to(1).last().unwrap();
        assert_eq!(policy.to_string(), "cache-prior:lambda=0.025:0.075:0.1414:0.05:0.0125,j=1,except=3");
        let weights = |two: &[(f64, f64)]| lambda_weights(&prices(two), &[]);
        assert_eq!(weights(&[(0.01, -0.1), (0.0, 0.3)]), [1.0 / MOST_WEIGHT, MOST_WEIGHT]);
        // Where leaning costs or saves nothing on the whole, no layer is known to be better than another.
        for two in [[(0.0, 0.0), (0.0, 0.1)], [(0.1, 0.0), (0.2, 0.0)], [(0.1, -0.2), (0.2, 0.1)]] {
            assert_eq!(weights(&two), [1.0, 1.0]);
        }
    }

    #[test]
    fn bisection_ends_at_the_strongest_within_the_limit() {
        // Each costs its parameter, and misses 1 less that.
        let mut parameters = Vec::new();
        let mut search = |family: &Family, limit: f64| {
            parameters.clear();
            let within = family.within(limit, 1.0, &mut |policy| {
                let text = policy.to_string();
                let rise: f64 = text.split(['=', ',']).nth(1).unwrap().parse().unwrap();
                parameters.push(rise);
                Ok((rise, 1.0 - rise))
            });
            let within = within.unwrap();
            (parameters.clone(), within.strongest, (within.misses_at_limit * 1e6).round() / 1e6)
        };
        let family = Family::cache_prior(Some(1), &[2]);
        assert_eq!(search(&family, 0.25), (vec![0.2, 0.35, 0.26, 0.23], Some(8), 0.75));
        // Beyond the strongest step nothing is promised; below the weakest, original routing is the other end of the line.
        assert_eq!(search(&family, 1.0), (vec![0.2, 0.35, 0.5, 0.8], Some(14), 0.2));
        assert_eq!(search(&family, 0.01), (vec![0.2, 0.1, 0.05, 0.03], None, 0.99));
        let policies: Vec<String> = family.up_to(1).map(|policy| policy.to_string()).collect();
        assert_eq!(policies, ["cache-prior:lambda=0.03,j=1,except=2", "cache-prior:lambda=0.05,j=1,except=2"]);
    }

    #[test]
    fn a_refusal_ends_the_questions() {
        let ask = |accepted: &[bool]| {
            let mut asked = 0;
            let last = last_accepted(0..accepted.len(), &mut |&index| {
                asked += 1;
                Ok(accepted[index].then_some(()))
            });
            (last.unwrap().map(|(index, ())| index), asked)
        };
        assert_eq!(ask(&[true, true, false, true]), (Some(1), 3));
        assert_eq!(ask(&[false, true]), (None, 1));
        assert_eq!(ask(&[true, true]), (Some(1), 2));
    }

    #[test]
    fn j_and_layers_are_searched_together_and_no_further_than_they_help() {
        // Misses by J and number of layers, what they are smallest at, and what is asked: J = 1 and 0 pay only without layers.
        let search = |misses: &[[f64; 3]; 3]| {
            let mut asked = Vec::new();
            let found = fewest_misses(2, &[0, 1, 2], &mut |j, layers| {
                asked.push((j, layers));
                Ok((misses[j][layers], (j, layers)))
            });
            (found.unwrap(), asked)
        };
        let (found, asked) = search(&[[9.0, 9.0, 4.0], [9.0, 6.0, 5.0], [8.0, 7.0, 7.5]]);
        assert_eq!((found, asked), ((0, 2), vec![(2, 0), (2, 1), (2, 2), (1, 1), (1, 2), (0, 2)]));
        let (found, asked) = search(&[[1.0; 3], [9.0, 7.0, 7.0], [9.0, 7.0, 8.0]]);
        assert_eq!((found, asked), ((2, 1), vec![(2, 0), (2, 1), (2, 2), (1, 1), (1, 2)]));
    }
}
