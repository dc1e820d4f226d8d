//! Guesses the experts of the next layer while this one's are still being read, so that idle flash can bring them.
//!
//! The guess is the next layer's router on the residual stream as far as it is known: with the shared expert's output added, and with
//! [`Prefetch::Speculate`] also with what the routed experts gave on average so far (the "default vector" of Speculating Experts).
//! The attention in between is left out. A guess changes no choice and no bit: it only says what to read.

use crate::Error;
use crate::experts::MoeLayer;
use crate::step::Step;
use crate::weights::{MatrixId, VectorId};
use moce_kernels::{Activations, Cpu, ExpertSum, Product, Rows};

/// Whether experts are read before the router asks for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefetch {
    /// As [`Prefetch::NextLayer`] where it has won, else not at all.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// What the next layer's router says about the state before it.
    NextLayer,
    /// The same with the mean output of the routed experts added.
    Speculate,
}

/// Guesses win where experts are so small that reading them takes longer to begin than to do: 10 to 20 % with 31 KB an expert. With 4.9 MB
/// an expert flash is busy anyway, and nothing is won or lost (bench/RESULTS.md).
const SMALL_EXPERT_BYTES: u64 = 256 << 10;

impl Prefetch {
    /// What is done with experts of this size.
    pub(crate) fn resolve(self, expert_bytes: u64) -> Prefetch {
        match self {
            Prefetch::Auto if expert_bytes < SMALL_EXPERT_BYTES => Prefetch::NextLayer,
            Prefetch::Auto => Prefetch::Off,
            chosen => chosen,
        }
    }
}

/// The parts of the next layer that a guess needs.
pub(super) struct NextLayer {
    /// `[hidden]`
    pub(super) norm: VectorId,
    /// `[experts, hidden]`
    pub(super) router: MatrixId,
    pub(super) experts: MoeLayer,
    pub(super) count: usize,
    pub(super) per_token: usize,
}

/// Buffers of guesses, and what they have learned.
pub(crate) struct PrefetchScratch {
    /// The state that the guess looks at `[1, hidden]`.
    state: Vec<f32>,
    normed: Activations,
    /// `[experts]`
    scores: Vec<f32>,
    /// The guessed experts, likeliest first.
    guess: Vec<u32>,
    /// Mean output of the routed experts of each MoE layer `[layers, hidden]`.
    mean: Vec<f32>,
    /// Tokens that the means are over.
    tokens: Vec<u32>,
}

/// The mean output forgets: it is over about so many tokens.
const MEAN_TOKENS: u32 = 256;

impl PrefetchScratch {
    /// Nothing, for models without experts and where nothing is guessed.
    pub(crate) fn none() -> PrefetchScratch {
        PrefetchScratch::new(0, 0, 0, 0)
    }

    pub(crate) fn new(layers: usize, hidden: usize, experts: usize, per_token: usize) -> PrefetchScratch {
        PrefetchScratch {
            state: vec![0.0; hidden],
            normed: Activations::new(1, hidden),
            scores: vec![0.0; experts],
            guess: Vec::with_capacity(per_token),
            mean: vec![0.0; layers * hidden],
            tokens: vec![0; layers],
        }
    }

    /// Bytes that [`PrefetchScratch::new`] holds.
    pub(crate) fn bytes(layers: usize, hidden: usize, experts: usize) -> usize {
        (hidden + experts + layers * hidden) * size_of::<f32>() + Activations::bytes(1, hidden)
    }

    /// Learns from what the routed experts of a layer gave for a token.
    pub(super) fn learn(&mut self, layer: MoeLayer, cpu: &Cpu, hidden: usize, routed: &ExpertSum<'_>) {
        let sum = &mut self.state[..hidden];
        sum.fill(0.0);
        cpu.combine_experts(sum, hidden, routed);
        let tokens = &mut self.tokens[layer.0];
        *tokens = (*tokens + 1).min(MEAN_TOKENS);
        let share = 1.0 / *tokens as f32;
        let mean = &mut self.mean[layer.0 * hidden..(layer.0 + 1) * hidden];
        mean.iter_mut().zip(&*sum).for_each(|(mean, sum)| *mean += (sum - *mean) * share);
    }
}

impl NextLayer {
    /// Guesses for the one token of the step, and asks for what is absent. `this` is the layer that is being computed; `shared` says
    /// whether a shared expert's output stands in the scratch.
    pub(super) fn prefetch(&self, step: &mut Step<'_>, this: MoeLayer, shared: Shared) -> Result<(), Error> {
        let hidden = step.hyperparameters.hidden;
        let Step { cpu, weights, experts, scratch, prefetch, .. } = step;
        if !experts.has_room_for_guesses() {
            return Ok(());
        }
        let guess = &mut scratch.prefetch;
        guess.state.copy_from_slice(&scratch.x[..hidden]);
        let scale = match shared {
            Shared::None => 0.0,
            Shared::Plain => 1.0,
            Shared::Scaled => scratch.experts.shared_scale[0],
        };
        if scale != 0.0 {
            guess.state.iter_mut().zip(&scratch.projected[..hidden]).for_each(|(x, y)| *x += scale * y);
        }
        if *prefetch == Prefetch::Speculate {
            let mean = &guess.mean[this.0 * hidden..(this.0 + 1) * hidden];
            guess.state.iter_mut().zip(mean).for_each(|(x, y)| *x += y);
        }
        let norm = weights.vector(self.norm);
        cpu.rms_norm(&guess.state, norm, step.hyperparameters.rms_epsilon, guess.normed.begin(1, hidden));
        let scores = &mut guess.scores[..self.count];
        let router = weights.matrix(self.router);
        cpu.multiply(&mut [Product { weights: router, input: &guess.normed, input_rows: Rows::All, output: scores }]);
        guess.guess.clear();
        for _ in 0..self.per_token {
            let best = (0..self.count as u32)
                .filter(|id| !guess.guess.contains(id))
                .max_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]).then(b.cmp(&a)));
            guess.guess.extend(best);
        }
        experts.prefetch(self.experts, &guess.guess)
    }
}

/// What the scratch holds of a shared expert.
#[derive(Clone, Copy)]
pub(super) enum Shared {
    None,
    Plain,
    Scaled,
}
