//! One MoE layer of one session: its logical cache, eviction state, running range, and what is counted of it.
//!
//! Invariants: at most C experts are cached after a token; every chosen expert is cached after its token unless C is 0; an
//! error leaves the layer as it was.

use crate::evictions::{AnyEviction, Eviction, Observed};
use crate::figures::{Counts, Lifetimes};
use crate::order::Order;
use crate::policies::{Policy, Token};
use crate::ranking::{self, Ranked};
use crate::{Error, EvictionSpec, LayerShape, Phase, RouterScores, Selection, TouchOrder};

/// Scratch of one routing step, shared by the layers of a session.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    own: Vec<Ranked>,
    chosen: Vec<bool>,
}

impl Scratch {
    pub(crate) fn new(experts: usize, experts_per_token: usize) -> Self {
        Self { own: Vec::with_capacity(experts_per_token), chosen: vec![false; experts] }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) shape: LayerShape,
    pub(crate) recency: Order,
    pub(crate) eviction: AnyEviction,
    pub(crate) range_sum: f64,
    pub(crate) tokens: u64,
    pub(crate) counts: [Counts; 2],
    pub(crate) usage: Vec<u64>,
    admitted_at: Vec<u64>,
    pub(crate) lifetimes: Lifetimes,
}

impl Layer {
    pub(crate) fn new(shape: LayerShape, eviction: EvictionSpec) -> Self {
        Self {
            shape,
            recency: Order::new(shape.experts),
            eviction: AnyEviction::new(eviction),
            range_sum: 0.0,
            tokens: 0,
            counts: [Counts::default(); 2],
            usage: vec![0; shape.experts],
            admitted_at: vec![0; shape.experts],
            lifetimes: Lifetimes::default(),
        }
    }

    /// Routes one token (METHOD.md, "One token in one layer", 1 to 5).
    pub(crate) fn route(
        &mut self,
        index: usize,
        scores: RouterScores<'_>,
        policy: &Policy,
        touch: TouchOrder,
        phase: Phase,
        scratch: &mut Scratch,
        out: &mut Selection,
    ) -> Result<(), Error> {
        let scores = scores.sorting;
        if scores.len() != self.shape.experts {
            let (given, expected) = (scores.len(), self.shape.experts);
            return Err(Error::ScoreCount { layer: index, what: "scores", given, expected });
        }
        let (lowest, highest) = extremes(scores).ok_or_else(|| non_finite(index, scores))?;
        self.range_sum += f64::from(highest) - f64::from(lowest);
        self.tokens += 1;
        out.range = self.range_sum / self.tokens as f64;

        ranking::best(scores, self.shape.experts_per_token, &mut scratch.own);
        out.ranked.clear();
        policy.choose(&Token { own: &scratch.own }, &mut out.ranked);
        out.judge(self.recency.members());

        for &expert in &out.ranked {
            scratch.chosen[expert as usize] = true;
        }
        self.count(phase, &scratch.own, &scratch.chosen, out);
        if self.shape.capacity > 0 {
            self.update_cache(touch, &scratch.chosen, out);
        }
        for &expert in &out.ranked {
            scratch.chosen[expert as usize] = false;
        }
        Ok(())
    }

    fn count(&mut self, phase: Phase, own: &[Ranked], chosen: &[bool], out: &mut Selection) {
        let kept = own.iter().filter(|own| chosen[own.expert as usize]).count();
        out.changed = own.len() - kept;
        let strongest = default_protected(self.shape.experts, self.shape.experts_per_token);
        let strongest_kept = own[..strongest].iter().filter(|own| chosen[own.expert as usize]).count();
        let hits = out.ranked_hits.iter().filter(|hit| **hit).count();
        self.counts[phase as usize] += Counts {
            tokens: 1,
            own_selections: own.len() as u64,
            selections: out.ranked.len() as u64,
            hits: hits as u64,
            misses: (out.ranked.len() - hits) as u64,
            changed: out.changed as u64,
            strongest: strongest as u64,
            strongest_kept: strongest_kept as u64,
        };
        for &expert in &out.ranked {
            self.usage[expert as usize] += 1;
        }
    }

    /// Touches the chosen experts, then evicts down to the capacity.
    fn update_cache(&mut self, touch: TouchOrder, chosen: &[bool], out: &mut Selection) {
        self.eviction.observe(&Observed { chosen: &out.ranked });
        match touch {
            TouchOrder::StrongFirst => out.ranked.iter().for_each(|&expert| self.touch(expert)),
            TouchOrder::WeakFirst => out.ranked.iter().rev().for_each(|&expert| self.touch(expert)),
        }
        while self.recency.len() > self.shape.capacity {
            let victim = self.eviction.victim(&self.recency, chosen);
            self.recency.remove(victim);
            self.lifetimes.add(self.tokens - self.admitted_at[victim as usize], false);
            out.evicted.push(victim);
        }
    }

    fn touch(&mut self, expert: u32) {
        let cached = self.recency.contains(expert);
        self.eviction.touch(expert, cached);
        if cached {
            self.recency.remove(expert);
        } else {
            self.admitted_at[expert as usize] = self.tokens;
        }
        self.recency.push_back(expert);
    }

    /// Lifetimes so far, experts still cached counted up to now.
    pub(crate) fn lifetimes_to_now(&self) -> Lifetimes {
        let mut lifetimes = self.lifetimes;
        for expert in self.recency.iter() {
            lifetimes.add(self.tokens - self.admitted_at[expert as usize], true);
        }
        lifetimes
    }
}

/// J where none is given: 1 if N <= 16, else 2, at most K.
pub(crate) fn default_protected(experts: usize, experts_per_token: usize) -> usize {
    if experts <= 16 { 1 } else { 2.min(experts_per_token) }
}

/// The lowest and the highest score, `None` if one is not finite.
fn extremes(scores: &[f32]) -> Option<(f32, f32)> {
    // Lanes side by side, so that the compiler may use SIMD; min and max do not depend on the order.
    let mut lowest = [f32::INFINITY; 8];
    let mut highest = [f32::NEG_INFINITY; 8];
    let mut finite = true;
    for chunk in scores.chunks(8) {
        for (lane, &score) in chunk.iter().enumerate() {
            finite &= score.is_finite();
            lowest[lane] = if score < lowest[lane] { score } else { lowest[lane] };
            highest[lane] = if score > highest[lane] { score } else { highest[lane] };
        }
    }
    let lowest = lowest.into_iter().fold(f32::INFINITY, f32::min);
    let highest = highest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    finite.then_some((lowest, highest))
}

fn non_finite(layer: usize, scores: &[f32]) -> Error {
    let expert = scores.iter().position(|score| !score.is_finite()).expect("called because there is one");
    Error::NonFinite { layer, expert, value: scores[expert] }
}
