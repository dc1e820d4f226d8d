//! `score`: the expert that the router has wanted least leaves: a running average of its probability, chosen or not.
//!
//! Costs nothing in quality: it reads what the router computes anyway.

use super::{Eviction, Observed, least_weight};
use crate::bits::Bits;
use crate::order::Order;
use crate::softmax::softmax;

/// Averaged probabilities, cached or not.
#[derive(Debug, Clone)]
pub(crate) struct Score {
    memory: f64,
    pub(crate) averages: Vec<f64>,
    probabilities: Vec<f64>,
}

impl Score {
    pub(super) fn new(experts: usize, memory: u32) -> Self {
        let (averages, probabilities) = (vec![0.0; experts], Vec::with_capacity(experts));
        Self { memory: f64::from(memory), averages, probabilities }
    }
}

impl Eviction for Score {
    fn observe(&mut self, token: &Observed<'_>) {
        let Some(scores) = token.scores else { return };
        match scores.unbiased {
            None => softmax(scores.sorting, &mut self.probabilities),
            Some(unbiased) => shares(unbiased, &mut self.probabilities),
        }
        for (average, probability) in self.averages.iter_mut().zip(&self.probabilities) {
            *average += (probability - *average) / self.memory;
        }
    }

    fn touch(&mut self, _expert: u32, _cached: bool) {}

    fn victim(&mut self, recency: &Order, chosen: &Bits) -> u32 {
        least_weight(&self.averages, recency, chosen)
    }

    fn clear(&mut self) {
        self.averages.fill(0.0);
    }
}

/// Scores over their sum, summed by ascending id; all 0 if every score is 0.
fn shares(scores: &[f32], probabilities: &mut Vec<f64>) {
    let sum: f64 = scores.iter().map(|&score| f64::from(score)).sum();
    let divisor = if sum > 0.0 { sum } else { 1.0 };
    probabilities.clear();
    probabilities.extend(scores.iter().map(|&score| f64::from(score) / divisor));
}
