//! Where candidates come from: those of each family of policies that keep a limit, layers by what leaning costs in them, and slots by
//! marginal gain.

use crate::Error;
use moce_engine::MemoryPlan;
use moce_engine::routing::{CachePrior, Cumulative, Lambda, MaxRank, Policy};
use serde::{Deserialize, Serialize};

/// λ that are tried, each about 1.2 times the one before in the useful range: what lies between differs by less than a text can tell.
const LAMBDAS: [f64; 15] = [0.03, 0.05, 0.07, 0.1, 0.12, 0.14, 0.17, 0.2, 0.23, 0.26, 0.3, 0.35, 0.4, 0.5, 0.8];
/// Shares p that are tried.
const SHARES: [f64; 12] = [0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95];
/// Capacities, as shares of the wanted one, at which misses are measured for [`allocate`].
pub(super) const CURVE_SHARES: [f64; 5] = [0.5, 0.75, 1.0, 1.25, 1.5];

/// A policy with capacities.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) policy: Policy,
    pub(super) capacity: Vec<usize>,
    /// Whether capacities were spread by layer.
    pub(super) by_layer: bool,
}

impl Candidate {
    /// A policy at the capacities that tuning began with.
    pub(super) fn uniform(policy: Policy, capacity: &[usize]) -> Candidate {
        Candidate { policy, capacity: capacity.to_vec(), by_layer: false }
    }
}

/// A family of policies with one parameter.
pub(super) struct Family {
    /// Its values, from weak to strong.
    steps: Vec<f64>,
    make: Box<dyn Fn(f64) -> Policy>,
}

/// What a bisection has met.
pub(super) struct Within<T> {
    /// Which step is the strongest within the limit.
    pub(super) strongest: Option<usize>,
    /// What was kept of all that are within it.
    pub(super) kept: Vec<T>,
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

    fn new(steps: impl IntoIterator<Item = f64>, make: impl Fn(f64) -> Policy + 'static) -> Family {
        Family { steps: steps.into_iter().collect(), make: Box::new(make) }
    }

    /// Bisects for the strongest of the family within a limit. `trial` runs one and gives what is to be kept of it, `None` if it is
    /// beyond the limit.
    pub(super) fn within<T>(
        &self,
        trial: &mut dyn FnMut(Policy) -> Result<Option<T>, Error>,
    ) -> Result<Within<T>, Error> {
        let mut within = Within { strongest: None, kept: Vec::new() };
        let (mut low, mut high) = (0, self.steps.len());
        while low < high {
            let middle = (low + high) / 2;
            match trial((self.make)(self.steps[middle]))? {
                Some(kept) => {
                    within.strongest = Some(middle);
                    within.kept.push(kept);
                    low = middle + 1;
                }
                None => high = middle,
            }
        }
        Ok(within)
    }

    /// Ever weaker policies than that of step `strongest`, every second step: the second half may be dearer than the first.
    pub(super) fn weaker(&self, strongest: usize) -> impl Iterator<Item = Policy> {
        self.steps[..strongest].iter().rev().skip(1).step_by(2).map(|&step| (self.make)(step))
    }
}

/// The fewest misses over J and a number of layers that are left out, and what was found there. Fewer protected choices may pay only where
/// layers are left out, so both are searched together: from the `usual` J down while that leaves fewer misses, and for each J ever more
/// layers (`counts`, ascending) while that does. `search` gives misses, infinite where nothing keeps the limit, for (J, layers).
pub(super) fn fewest_misses<T>(
    usual: usize,
    counts: &[usize],
    search: &mut dyn FnMut(usize, usize) -> Result<(f64, T), Error>,
) -> Result<Option<T>, Error> {
    let (mut fewest, mut best, mut of_best) = (f64::INFINITY, None, 0);
    for j in (0..=usual).rev() {
        let (so_far, mut of_fewer) = (fewest, f64::INFINITY);
        for (index, &layers) in counts.iter().enumerate().skip(of_best) {
            let (misses, found) = search(j, layers)?;
            if misses < fewest {
                (fewest, best, of_best) = (misses, Some(found), index);
            }
            // Where nothing has kept the limit yet, more layers may help.
            if misses.is_finite() && misses >= of_fewer {
                break;
            }
            of_fewer = misses;
        }
        if fewest >= so_far {
            break;
        }
    }
    Ok(best)
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

/// Spreads the sum of `capacity` over the layers by marginal gain: `curves` has measured (capacity, misses) points of each layer, taken as
/// straight between them. Greedy is exact where the curves are convex; their lower convex hull is used.
pub(super) fn allocate(curves: &[Vec<(usize, f64)>], capacity: &[usize], least: usize) -> Vec<usize> {
    let hulls: Vec<Vec<(usize, f64)>> = curves.iter().map(|curve| hull(curve)).collect();
    let lowest = |hull: &Vec<(usize, f64)>| hull.first().map_or(least, |point| point.0.max(least));
    let mut slots: Vec<usize> = hulls.iter().map(lowest).collect();
    let total: usize = capacity.iter().sum();
    let gain = |layer: usize, slots: usize| {
        let segment = hulls[layer].windows(2).find(|points| slots >= points[0].0 && slots < points[1].0)?;
        Some((segment[0].1 - segment[1].1) / (segment[1].0 - segment[0].0) as f64)
    };
    while slots.iter().sum::<usize>() < total {
        let gains = (0..slots.len()).filter_map(|layer| Some((layer, gain(layer, slots[layer])?)));
        let Some((layer, _)) = gains.max_by(|one, other| one.1.total_cmp(&other.1)) else { break };
        slots[layer] += 1;
    }
    // More was asked for than the curves reach, or less than their beginnings need: as it was.
    if slots.iter().sum::<usize>() == total { slots } else { capacity.to_vec() }
}

/// The lower convex hull of points with ascending first coordinates; misses that rise with the capacity are taken as level.
fn hull(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let mut hull: Vec<(usize, f64)> = Vec::new();
    for &(x, y) in points {
        if hull.last().is_some_and(|last| last.0 == x) {
            continue;
        }
        let y = hull.last().map_or(y, |last| y.min(last.1));
        let slope = |from: (usize, f64), to: (usize, f64)| (to.1 - from.1) / (to.0 - from.0) as f64;
        while hull.len() >= 2
            && slope(hull[hull.len() - 2], hull[hull.len() - 1]) >= slope(hull[hull.len() - 1], (x, y))
        {
            hull.pop();
        }
        hull.push((x, y));
    }
    hull
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
    fn bisection_keeps_what_is_within_the_limit_and_ends_at_the_strongest() {
        let mut tried = Vec::new();
        let mut search = |family: &Family, most: f64| {
            tried.clear();
            let within = family.within(&mut |policy| {
                let text = policy.to_string();
                let parameter: f64 = text.split(['=', ',']).nth(1).unwrap().parse().unwrap();
                tried.push(parameter);
                Ok((parameter <= most).then_some(parameter))
            });
            let within = within.unwrap();
            (tried.clone(), within.strongest, within.kept)
        };
        let family = Family::cache_prior(Some(1), &[2]);
        assert_eq!(search(&family, 0.25), (vec![0.2, 0.35, 0.26, 0.23], Some(8), vec![0.2, 0.23]));
        assert_eq!(search(&family, 1.0).1, Some(14));
        assert_eq!(search(&family, 0.01), (vec![0.2, 0.1, 0.05, 0.03], None, vec![]));
        let weaker: Vec<String> = family.weaker(4).map(|policy| policy.to_string()).collect();
        assert_eq!(weaker, ["cache-prior:lambda=0.07,j=1,except=2", "cache-prior:lambda=0.03,j=1,except=2"]);
        let ranks = Family::new([5.0, 6.0, 7.0], |m| Policy::MaxRank(MaxRank { m: Some(m as usize), j: None }));
        assert_eq!(search(&ranks, 6.0), (vec![6.0, 7.0], Some(1), vec![6.0]));
    }

    #[test]
    fn j_and_layers_are_searched_together_and_no_further_than_they_help() {
        const NONE: f64 = f64::INFINITY;
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
        assert_eq!((found, asked), (Some((0, 2)), vec![(2, 0), (2, 1), (2, 2), (1, 1), (1, 2), (0, 2)]));
        let (found, asked) = search(&[[1.0; 3], [9.0, 9.0, 9.0], [NONE, NONE, 7.0]]);
        assert_eq!((found, asked), (Some((2, 2)), vec![(2, 0), (2, 1), (2, 2), (1, 2)]));
        assert_eq!(search(&[[1.0; 3], [1.0; 3], [NONE; 3]]), (None, vec![(2, 0), (2, 1), (2, 2)]));
    }

    #[test]
    fn slots_go_where_they_save_most() {
        let steep = vec![(4, 100.0), (8, 20.0), (12, 0.0)];
        let flat = vec![(4, 10.0), (8, 8.0), (12, 7.0)];
        assert_eq!(allocate(&[steep.clone(), flat.clone()], &[8, 8], 4), [12, 4]);
        assert_eq!(allocate(&[flat.clone(), flat.clone()], &[8, 8], 4).iter().sum::<usize>(), 16);
        // Beyond what was measured nothing is promised.
        assert_eq!(allocate(&[steep, flat], &[20, 20], 4), [20, 20]);
    }

    #[test]
    fn hulls_are_convex() {
        assert_eq!(hull(&[(1, 10.0), (2, 9.0), (3, 2.0), (4, 3.0)]), [(1, 10.0), (3, 2.0), (4, 2.0)]);
        assert_eq!(hull(&[(4, 1.0), (4, 1.0)]), [(4, 1.0)]);
    }
}
