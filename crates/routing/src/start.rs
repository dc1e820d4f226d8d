//! What the logical caches hold before the first token. Reads text, never files.

use std::fmt;
use std::str::FromStr;

use crate::scores::check_ids;
use crate::splitmix::draw;
use crate::{Error, LayerShape};

/// The experts cached at the start of a session, for studies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Start {
    /// Nothing.
    #[default]
    Empty,
    /// In each layer experts 0 to C - 1, 0 the least recent.
    First,
    /// In each layer C different experts drawn with this seed, the first drawn the least recent.
    Random(u64),
    /// For each MoE layer the experts, least recent first.
    Given(Vec<Vec<u32>>),
}

impl Start {
    /// Reads one line per MoE layer with expert ids between white space, least recent first; an empty line is an empty cache.
    ///
    /// # Errors
    /// [`Error::Spec`] with the first word that is no expert id.
    pub fn from_lists(text: &str) -> Result<Self, Error> {
        let id = |word: &str| {
            let (option, given) = ("start".to_owned(), word.to_owned());
            word.parse().map_err(|_| Error::Spec {
                option,
                given,
                allowed: "expert ids, one MoE layer a line".to_owned(),
            })
        };
        let lists = text.lines().map(|line| line.split_whitespace().map(id).collect());
        lists.collect::<Result<_, _>>().map(Self::Given)
    }

    pub(crate) fn validate(&self, shapes: &[LayerShape]) -> Result<(), Error> {
        let Self::Given(lists) = self else { return Ok(()) };
        if lists.len() != shapes.len() {
            return Err(Error::LayerCount { what: "start", given: lists.len(), expected: shapes.len() });
        }
        for (layer, (list, shape)) in lists.iter().zip(shapes).enumerate() {
            if list.len() > shape.capacity {
                let problem = format!("{} experts for a capacity of {}", list.len(), shape.capacity);
                return Err(Error::Experts { layer, what: "start", problem });
            }
            check_ids(layer, "start", list, shape.experts)?;
        }
        Ok(())
    }

    /// The experts of one layer, least recent first.
    ///
    /// # Panics
    /// There are lists, and none for this layer.
    pub fn experts(&self, layer: usize, shape: LayerShape) -> Vec<u32> {
        match self {
            Self::Empty => Vec::new(),
            Self::First => (0..shape.capacity as u32).collect(),
            Self::Given(lists) => lists[layer].clone(),
            Self::Random(seed) => {
                let mut experts: Vec<u32> = (0..shape.experts as u32).collect();
                for at in 0..shape.capacity {
                    let left = (shape.experts - at) as u64;
                    experts.swap(at, at + (draw(*seed, layer, at as u64) % left) as usize);
                }
                experts.truncate(shape.capacity);
                experts
            }
        }
    }
}

/// `empty`, `first` and `random:SEED`; a file is the caller's to read ([`Start::from_lists`]).
impl FromStr for Start {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let seed = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        match text {
            "empty" => Some(Self::Empty),
            "first" => Some(Self::First),
            _ => text.strip_prefix("random:").and_then(seed).map(Self::Random),
        }
        .ok_or_else(|| Error::Spec {
            option: "start".to_owned(),
            given: text.to_owned(),
            allowed: "empty, first or random:SEED".to_owned(),
        })
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty"),
            Self::First => f.write_str("first"),
            Self::Random(seed) => write!(f, "random:{seed}"),
            Self::Given(_) => f.write_str("given"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_strict() {
        assert_eq!("random:12345678901234567890".parse(), Ok(Start::Random(12_345_678_901_234_567_890)));
        for text in ["empty", "first", "random:7"] {
            assert_eq!(text.parse::<Start>().unwrap().to_string(), text);
        }
        for text in ["", "random", "random:", "random:-1", "random:+1", "random:1x", "First", "cache.txt"] {
            assert!(text.parse::<Start>().is_err(), "{text}");
        }
        assert_eq!(Start::from_lists("1 2\n\n 3\n"), Ok(Start::Given(vec![vec![1, 2], vec![], vec![3]])));
        assert!(Start::from_lists("1 x").is_err());
    }

    #[test]
    fn random_starts_differ_by_layer_and_fill_the_capacity() {
        let shape = LayerShape { experts: 60, experts_per_token: 4, capacity: 30 };
        let (first, second) = (Start::Random(7).experts(0, shape), Start::Random(7).experts(1, shape));
        assert_ne!(first, second);
        for mut experts in [first, second] {
            experts.sort_unstable();
            experts.dedup();
            assert_eq!(experts.len(), 30);
        }
        let all = LayerShape { capacity: 60, ..shape };
        assert_eq!(Start::Random(1).experts(0, all).len(), 60);
    }

    #[test]
    fn given_lists_must_fit() {
        let shapes = [LayerShape { experts: 4, experts_per_token: 2, capacity: 2 }];
        assert!(Start::Given(vec![vec![3, 0]]).validate(&shapes).is_ok());
        for lists in [vec![], vec![vec![4]], vec![vec![1, 1]], vec![vec![0, 1, 2]], vec![vec![], vec![]]] {
            assert!(Start::Given(lists).validate(&shapes).is_err());
        }
    }
}
