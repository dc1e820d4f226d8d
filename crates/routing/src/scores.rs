//! What a router gives for a token, and the checks that everything after relies on: as many scores as experts, all finite;
//! ids that exist and come once.

use crate::ranking::extremes;
use crate::{Error, LayerShape};

/// A router's output for one token. `scores.into()` is the plain case.
#[derive(Debug, Clone, Copy)]
pub struct RouterScores<'a> {
    /// What the model sorts by, one per expert: logits, or for sigmoid routers the biased selection scores.
    pub sorting: &'a [f32],
    /// The only experts that may be chosen, by ascending id, where the model first chose groups; `None`: all.
    pub candidates: Option<&'a [u32]>,
    /// For sigmoid routers: the unbiased scores, one per expert, which then are the probabilities of the `score` eviction
    /// (over their sum). `None`: softmax of `sorting`.
    pub unbiased: Option<&'a [f32]>,
}

impl<'a> From<&'a [f32]> for RouterScores<'a> {
    fn from(sorting: &'a [f32]) -> Self {
        Self { sorting, candidates: None, unbiased: None }
    }
}

impl<'a> From<&'a Vec<f32>> for RouterScores<'a> {
    fn from(sorting: &'a Vec<f32>) -> Self {
        sorting.as_slice().into()
    }
}

impl RouterScores<'_> {
    /// Checks everything and returns the lowest and the highest candidate's score. If only some experts are candidates, their
    /// scores are copied to `masked`, with minus infinity elsewhere.
    pub(crate) fn check(&self, layer: usize, shape: LayerShape, masked: &mut Vec<f32>) -> Result<(f32, f32), Error> {
        let extremes = check_finite(layer, "scores", self.sorting, shape.experts)?;
        if let Some(unbiased) = self.unbiased {
            let (least, _) = check_finite(layer, "unbiased scores", unbiased, shape.experts)?;
            if least < 0.0 {
                let problem = format!("a score of {least}, expected 0 or more");
                return Err(Error::Experts { layer, what: "the unbiased scores", problem });
            }
        }
        let Some(candidates) = self.candidates else { return Ok(extremes) };
        check_candidates(layer, shape, candidates)?;
        Ok(mask(self.sorting, candidates, masked))
    }
}

fn check_finite(layer: usize, what: &'static str, scores: &[f32], expected: usize) -> Result<(f32, f32), Error> {
    if scores.len() != expected {
        return Err(Error::ScoreCount { layer, what, given: scores.len(), expected });
    }
    extremes(scores).ok_or_else(|| {
        let expert = scores.iter().position(|score| !score.is_finite()).expect("there is one");
        Error::NonFinite { layer, expert, value: scores[expert] }
    })
}

fn check_candidates(layer: usize, shape: LayerShape, candidates: &[u32]) -> Result<(), Error> {
    let error = |problem| Err(Error::Experts { layer, what: "the candidates", problem });
    if candidates.len() < shape.experts_per_token {
        return error(format!("{} for {} choices", candidates.len(), shape.experts_per_token));
    }
    if let Some(pair) = candidates.windows(2).find(|pair| pair[0] >= pair[1]) {
        return error(format!("{} before {}, expected ascending ids", pair[0], pair[1]));
    }
    match candidates.last() {
        Some(&last) if last as usize >= shape.experts => error(format!("expert {last} of {}", shape.experts)),
        _ => Ok(()),
    }
}

/// Refuses ids that are out of range or come twice.
pub(crate) fn check_ids(layer: usize, what: &'static str, experts: &[u32], count: usize) -> Result<(), Error> {
    for (at, &expert) in experts.iter().enumerate() {
        if expert as usize >= count {
            return Err(Error::Experts { layer, what, problem: format!("expert {expert} of {count}") });
        }
        if experts[..at].contains(&expert) {
            return Err(Error::Experts { layer, what, problem: format!("expert {expert} comes twice") });
        }
    }
    Ok(())
}

/// Copies the candidates' scores to `masked`, minus infinity elsewhere; the lowest and the highest of them.
fn mask(scores: &[f32], candidates: &[u32], masked: &mut Vec<f32>) -> (f32, f32) {
    masked.clear();
    masked.resize(scores.len(), f32::NEG_INFINITY);
    let (mut lowest, mut highest) = (f32::INFINITY, f32::NEG_INFINITY);
    for &expert in candidates {
        let score = scores[expert as usize];
        masked[expert as usize] = score;
        lowest = lowest.min(score);
        highest = highest.max(score);
    }
    (lowest, highest)
}
