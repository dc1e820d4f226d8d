//! The cells of a sweep: every combination of policy, capacity and eviction, each with a name that is a file name too.

use crate::Error;
use crate::fingerprint::fingerprint;
use moce_engine::routing::{EvictionSpec, Policy, RoutingOptions};
use moce_engine::{Capacity, MemoryPlan};

/// What a sweep compares.
#[derive(Clone, Debug)]
pub struct SweepGrid {
    /// Policies; the original is added where it is missing.
    pub policies: Vec<Policy>,
    /// Capacities, and how they were written.
    pub capacities: Vec<(String, Capacity)>,
    /// Which cached expert leaves.
    pub evictions: Vec<EvictionSpec>,
    /// Everything else about routing.
    pub base: RoutingOptions,
}

/// One of them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SweepCell {
    /// Its name: unique in the sweep, and fit for a file.
    pub name: String,
    /// The capacity as it was written.
    pub capacity: String,
    /// Experts logically cached in each MoE layer.
    pub capacities: Vec<usize>,
    /// The policy applies to every token.
    pub routing: RoutingOptions,
}

impl SweepGrid {
    /// Every cell for the model of this plan, in order.
    ///
    /// # Errors
    /// A capacity does not fit the model.
    pub fn cells(&self, plan: &MemoryPlan) -> Result<Vec<SweepCell>, Error> {
        let original = std::iter::once(Policy::Original);
        let policies = original.chain(self.policies.iter().filter(|&policy| *policy != Policy::Original).cloned());
        let policies: Vec<Policy> = policies.collect();
        let mut cells: Vec<SweepCell> = Vec::new();
        for (written, capacity) in &self.capacities {
            let capacities = plan.resolve_capacity(capacity)?;
            for &eviction in &self.evictions {
                for policy in &policies {
                    let name = file_name(&format!("{written}_{eviction}_{policy}"));
                    let policy = policy.clone();
                    let routing =
                        RoutingOptions { prompt_policy: policy.clone(), policy, eviction, ..self.base.clone() };
                    cells.push(SweepCell { name, capacity: written.clone(), capacities: capacities.clone(), routing });
                }
            }
        }
        Ok(cells)
    }
}

/// The cells without those that say the same in another way (`50%` and `30`, `fast` and all its parameters): the first way stays. Their
/// policies have their defaults written out.
///
/// # Errors
/// Two different cells have one name.
pub(super) fn without_repeats(cells: Vec<SweepCell>) -> Result<Vec<SweepCell>, Error> {
    let mut distinct: Vec<SweepCell> = Vec::with_capacity(cells.len());
    for cell in cells {
        if distinct.iter().any(|other| other.capacities == cell.capacities && other.routing == cell.routing) {
            continue;
        }
        if distinct.iter().any(|other| other.name == cell.name) {
            return Err(Error::SameName { name: cell.name });
        }
        distinct.push(cell);
    }
    Ok(distinct)
}

/// One of several parts of a sweep, for running it on several machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Shard = Shard { index: 1, count: 1 };

    /// The cells of this part.
    pub(super) fn cut(self, cells: Vec<SweepCell>) -> Vec<SweepCell> {
        cells.into_iter().skip(self.index - 1).step_by(self.count).collect()
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    /// `i/n`, i from 1 to n.
    fn from_str(text: &str) -> Result<Shard, String> {
        let number = |text: &str| text.parse::<usize>().ok();
        let parts = text.split_once('/').and_then(|(index, count)| Some((number(index)?, number(count)?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Shard { index, count }),
            _ => Err("expected i/n, such as 1/4 to 4/4".to_owned()),
        }
    }
}

/// Longer names are cut: file systems take 255 bytes, and a list of λ has more.
const LONGEST_NAME: usize = 160;

/// `text` as the name of a file. Where it is cut, or has signs of a path that stand for nothing in a name, a fingerprint of the whole
/// tells it from others.
pub(super) fn file_name(text: &str) -> String {
    let is_kept = |c: char| c.is_ascii_alphanumeric() || "._-=".contains(c);
    let is_grid = |c: char| "%:, ".contains(c);
    let character = |c: char| match c {
        '%' => 'p',
        c if is_kept(c) => c,
        _ => '-',
    };
    let name: String = text.chars().take(LONGEST_NAME).map(character).collect();
    if name.len() == text.len() && text.chars().all(|c| is_kept(c) || is_grid(c)) {
        name
    } else {
        format!("{name}_{}", fingerprint([text.as_bytes()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_engine::{Engine, EngineOptions};
    use moce_testkit::TinyModel;

    fn cells(policies: &str, capacities: &[&str]) -> Result<Vec<SweepCell>, Error> {
        let plan = Engine::plan_for(&TinyModel::open("qwen2moe").gguf, &EngineOptions::default()).unwrap();
        let capacity = |text: &&str| ((*text).to_owned(), Capacity::Experts(text.parse().unwrap()));
        let grid = SweepGrid {
            policies: crate::parse_grid(policies, |_| Err("no file".to_owned())).unwrap(),
            capacities: capacities.iter().map(capacity).collect(),
            evictions: vec!["lru".parse().unwrap(), "lfu:memory=64".parse().unwrap()],
            base: RoutingOptions::default(),
        };
        grid.cells(&plan)
    }

    #[test]
    fn the_original_is_always_there_and_names_are_file_names() {
        let cells = cells("cache-prior:lambda=0..0.2/2", &["4", "6"]).unwrap();
        assert_eq!(cells.len(), 2 * 2 * 4);
        assert_eq!(cells.iter().filter(|cell| cell.routing.policy == Policy::Original).count(), 4);
        assert!(cells.iter().all(|cell| cell.name.chars().all(|c| c.is_ascii_alphanumeric() || "._-=".contains(c))));
    }

    #[test]
    fn a_name_is_not_too_long_for_a_file() {
        let list = |last: &str| "0.125 ".repeat(59) + last;
        let names = ["0.1", "0.2"].map(|last| file_name(&format!("50%_lru_cache-prior:lambda={}", list(last))));
        assert!(names.iter().all(|name| name.len() < 200) && names[0] != names[1], "{names:?}");
        assert_eq!(file_name("50%_lru_fast:j=2,x"), "50p_lru_fast-j=2-x");
        let paths = ["caps/x", "caps-x", "caps\\x", "半", "全"].map(file_name);
        assert!((1..paths.len()).all(|at| !paths[..at].contains(&paths[at])), "{paths:?}");
    }

    #[test]
    fn cells_that_cannot_be_are_refused() {
        assert!(cells("original", &["1"]).is_err());
    }

    #[test]
    fn a_cell_that_is_named_in_two_ways_is_there_once() {
        let mut all = cells("fast;max-rank", &["4", "6", "4"]).unwrap();
        all[1].name = "another name".to_owned();
        let distinct = without_repeats(all.clone()).unwrap();
        assert_eq!((all.len(), distinct.len()), (3 * 2 * 3, 2 * 2 * 3));
        assert_eq!(distinct[1].name, "another name", "the first one stays");
        all[1].name = all[0].name.clone();
        assert!(matches!(without_repeats(all), Err(Error::SameName { .. })));
    }

    #[test]
    fn shards_cover_every_cell_once() {
        let all = cells("cache-prior:lambda=0..1/4", &["4"]).unwrap();
        let names = |cells: Vec<SweepCell>| cells.into_iter().map(|cell| cell.name).collect::<Vec<_>>();
        let shard = |text: &str| names(text.parse::<Shard>().unwrap().cut(all.clone()));
        let mut joined = [shard("1/3"), shard("2/3"), shard("3/3")].concat();
        let mut expected = names(all.clone());
        joined.sort();
        expected.sort();
        assert_eq!(joined, expected);
        for wrong in ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
