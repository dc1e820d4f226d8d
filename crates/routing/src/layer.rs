//! One MoE layer of one session: its logical cache, eviction state, running range, and what is counted of it.
//!
//! Invariants: at most C experts are cached after a token; every chosen expert is cached after its token unless C is 0; an
//! error leaves the layer as it was.

use crate::bits::Bits;
use crate::evictions::{AnyEviction, Eviction, Observed};
use crate::figures::{Counts, Lifetimes};
use crate::order::Order;
use crate::policies::{self, Policy, Token, default_protected};
use crate::ranking::{self, Ranked};
use crate::scores::check_ids;
use crate::{Error, EvictionSpec, LayerShape, Phase, RouterScores, Selection, TouchOrder};

/// Scratch of one routing step, shared by the layers of a session.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    /// The model's own choice r[1..K]; empty where a selection is replayed without scores.
    own: Vec<Ranked>,
    /// The scores, minus infinity outside the candidates.
    masked: Vec<f32>,
    /// The experts chosen for the token at hand.
    chosen: Bits,
    policy: policies::Scratch,
}

impl Scratch {
    /// Room for layers of at most `experts`, of which at most `experts_per_token` are chosen.
    pub(crate) fn new(experts: usize, experts_per_token: usize) -> Self {
        Self {
            own: Vec::with_capacity(experts_per_token),
            masked: Vec::with_capacity(experts),
            chosen: Bits::new(experts),
            policy: policies::Scratch::new(experts, experts_per_token),
        }
    }
}

/// Where and how a token is routed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// Index among the MoE layers.
    pub(crate) layer: usize,
    pub(crate) phase: Phase,
    pub(crate) touch: TouchOrder,
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) shape: LayerShape,
    /// The logical cache, least recently touched first.
    pub(crate) recency: Order,
    pub(crate) eviction: AnyEviction,
    /// Σ of max(z) - min(z), and over how many tokens.
    pub(crate) range_sum: f64,
    pub(crate) range_count: u64,
    /// Tokens seen in this session.
    pub(crate) tokens: u64,
    /// `tokens` when the cache was filled last: what was put there has not stayed before a token has run.
    filled_at: u64,
    pub(crate) counts: [Counts; 2],
    pub(crate) usage: Vec<u64>,
    /// `tokens` at the end of the token that admitted each cached expert.
    admitted_at: Vec<u64>,
    /// Stays that are over.
    lifetimes: Lifetimes,
}

impl Layer {
    pub(crate) fn new(shape: LayerShape, eviction: EvictionSpec) -> Self {
        Self {
            shape,
            recency: Order::new(shape.experts),
            eviction: AnyEviction::new(eviction, shape),
            range_sum: 0.0,
            range_count: 0,
            tokens: 0,
            filled_at: 0,
            counts: [Counts::default(); 2],
            usage: vec![0; shape.experts],
            admitted_at: vec![0; shape.experts],
            lifetimes: Lifetimes::default(),
        }
    }

    /// Empties the cache and the eviction's data, then fills it with `start`, least recent first. Range and counts stay.
    pub(crate) fn restart_cache(&mut self, start: &[u32]) {
        self.lifetimes = self.lifetimes_to_now();
        self.recency.clear();
        self.eviction.clear();
        for &expert in start {
            self.touch(expert);
        }
        self.filled_at = self.tokens;
    }

    /// As at the start of a session, but for what was counted.
    pub(crate) fn restart(&mut self, start: &[u32]) {
        self.restart_cache(&[]);
        (self.range_sum, self.range_count, self.tokens) = (0.0, 0, 0);
        self.restart_cache(start);
    }

    /// Routes one token (METHOD.md, "One token in one layer", 1 to 5).
    pub(crate) fn route(
        &mut self,
        step: Step,
        scores: RouterScores<'_>,
        policy: &Policy,
        scratch: &mut Scratch,
        out: &mut Selection,
    ) -> Result<(), Error> {
        let position = self.tokens;
        self.read(step.layer, scores, scratch)?;
        out.range = self.range();
        out.ranked.clear();
        let mut token = Token {
            layer: step.layer,
            position,
            scores: if scores.candidates.is_some() { &scratch.masked } else { scores.sorting },
            candidates: scores.candidates.map_or(scores.sorting.len(), <[u32]>::len),
            own: &scratch.own,
            range: out.range,
            cached: self.recency.members(),
            scratch: &mut scratch.policy,
        };
        policy.choose(&mut token, &mut out.ranked);
        self.settle(step, Some(scores), scratch, out);
        Ok(())
    }

    /// Re-applies a selection, given by rank. With scores, range and changed selections are kept up as well.
    pub(crate) fn replay(
        &mut self,
        step: Step,
        selection: &[u32],
        scores: Option<RouterScores<'_>>,
        scratch: &mut Scratch,
        out: &mut Selection,
    ) -> Result<(), Error> {
        check_ids(step.layer, "the selection", selection, self.shape.experts)?;
        if selection.len() > self.shape.experts_per_token {
            let problem = format!("{} experts where {} are chosen", selection.len(), self.shape.experts_per_token);
            return Err(Error::Experts { layer: step.layer, what: "the selection", problem });
        }
        match scores {
            Some(scores) => self.read(step.layer, scores, scratch)?,
            None => {
                scratch.own.clear();
                self.tokens += 1;
            }
        }
        out.range = self.range();
        out.ranked.clear();
        out.ranked.extend_from_slice(selection);
        self.settle(step, scores, scratch, out);
        Ok(())
    }

    /// Δ; 0 before the first token.
    pub(crate) fn range(&self) -> f64 {
        if self.range_count == 0 { 0.0 } else { self.range_sum / self.range_count as f64 }
    }

    /// Lifetimes so far, experts still cached counted up to now.
    pub(crate) fn lifetimes_to_now(&self) -> Lifetimes {
        let mut lifetimes = self.lifetimes;
        if self.tokens == self.filled_at {
            return lifetimes;
        }
        for expert in self.recency.iter() {
            lifetimes.add(self.tokens - self.admitted_at[expert as usize], true);
        }
        lifetimes
    }

    /// Forgets what was counted. Stays that go on are counted from their beginning when they end.
    pub(crate) fn clear_figures(&mut self) {
        self.counts = [Counts::default(); 2];
        self.usage.fill(0);
        self.lifetimes = Lifetimes::default();
    }

    /// Takes over `tokens` and the cache's contents, least recent first, without telling the eviction. Stays that this ends
    /// count as still cached.
    pub(crate) fn restore_cache(&mut self, tokens: u64, cached: &[u32]) {
        self.lifetimes = self.lifetimes_to_now();
        self.tokens = tokens;
        self.recency.clear();
        for &expert in cached {
            self.recency.push_back(expert);
            self.admitted_at[expert as usize] = self.tokens;
        }
        self.filled_at = self.tokens;
    }

    /// Checks the scores, takes the token into the range and finds the model's own choice.
    fn read(&mut self, layer: usize, scores: RouterScores<'_>, scratch: &mut Scratch) -> Result<(), Error> {
        let (lowest, highest) = scores.check(layer, self.shape, &mut scratch.masked)?;
        self.range_sum += f64::from(highest) - f64::from(lowest);
        self.range_count += 1;
        self.tokens += 1;
        let candidates = if scores.candidates.is_some() { &scratch.masked } else { scores.sorting };
        ranking::best(candidates, self.shape.experts_per_token, &mut scratch.own);
        Ok(())
    }

    /// Judges hits, counts, and updates the cache with the experts of `out.ranked`.
    fn settle(&mut self, step: Step, scores: Option<RouterScores<'_>>, scratch: &mut Scratch, out: &mut Selection) {
        scratch.chosen.clear();
        out.ranked.iter().for_each(|&expert| scratch.chosen.insert(expert));
        out.judge(&scratch.chosen, self.recency.members());
        self.count(step.phase, &scratch.own, &scratch.chosen, out);
        if self.shape.capacity > 0 {
            self.eviction.observe(&Observed { chosen: &out.ranked, scores });
            match step.touch {
                TouchOrder::StrongFirst => out.ranked.iter().for_each(|&expert| self.touch(expert)),
                TouchOrder::WeakFirst => out.ranked.iter().rev().for_each(|&expert| self.touch(expert)),
            }
            self.evict(&scratch.chosen, out);
        }
    }

    fn count(&mut self, phase: Phase, own: &[Ranked], chosen: &Bits, out: &mut Selection) {
        let ran = |own: &[Ranked]| own.iter().filter(|own| chosen.contains(own.expert)).count();
        let strongest = default_protected(self.shape.experts, self.shape.experts_per_token).min(own.len());
        out.changed = own.len() - ran(own);
        let hits = out.ranked_hits.iter().filter(|hit| **hit).count();
        self.counts[phase as usize] += Counts {
            tokens: 1,
            own_selections: self.shape.experts_per_token as u64,
            selections: out.ranked.len() as u64,
            hits: hits as u64,
            misses: (out.ranked.len() - hits) as u64,
            changed: out.changed as u64,
            strongest: strongest as u64,
            strongest_kept: ran(&own[..strongest]) as u64,
        };
        for &expert in &out.ranked {
            self.usage[expert as usize] += 1;
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

    fn evict(&mut self, chosen: &Bits, out: &mut Selection) {
        while self.recency.len() > self.shape.capacity {
            let victim = self.eviction.victim(&self.recency, chosen);
            self.recency.remove(victim);
            self.lifetimes.add(self.tokens - self.admitted_at[victim as usize], false);
            out.evicted.push(victim);
        }
    }
}
