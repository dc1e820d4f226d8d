//! A layer of routed experts, with or without a shared expert beside them.
//!
//! Per token: router scores, the chosen experts (`moce-routing`), their weights from the original scores. Then expert by expert: the
//! tokens that chose it, in one product; at last each token's sum in ascending id (NUMBERS.md), whatever the order of computing.

use super::prefetch::{NextLayer, Prefetch, Shared};
use super::times;
use crate::experts::{ExpertStore, Group, MoeLayer, PinnedExpert, Projection};
use crate::hyperparameters::ExpertShape;
use crate::load::Loader;
use crate::scratch::{ExpertScratch, Scratch};
use crate::step::{Step, quantize};
use crate::weights::{MatrixId, VectorId};
use crate::{Error, Hyperparameters};
use arrayvec::ArrayVec;
use moce_kernels::{ExpertSum, Product, Rows};

/// Experts whose products are made in one parallel region; bounds the list of products, which lives on the stack.
const EXPERTS_AT_ONCE: usize = 32;

pub(crate) struct MixtureOfExperts {
    shape: ExpertShape,
    /// `[experts, hidden]`; never quantised on the fly: scores are computed from the unquantised activations.
    router: MatrixId,
    experts: MoeLayer,
    shared: Option<SharedExpert>,
    /// The next layer with experts, for guesses.
    next: Option<NextLayer>,
}

/// The expert that every token runs.
struct SharedExpert {
    /// `[shared_feed_forward, hidden]`
    gate: MatrixId,
    /// `[shared_feed_forward, hidden]`
    up: MatrixId,
    /// `[hidden, shared_feed_forward]`
    down: MatrixId,
    /// `[hidden]`: its output is scaled by the sigmoid of this vector's product with the token; absent: by 1.
    scale: Option<VectorId>,
}

impl MixtureOfExperts {
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        h: &Hyperparameters,
        shape: ExpertShape,
        layer: usize,
    ) -> Result<MixtureOfExperts, Error> {
        let shared = match shape.shared_feed_forward {
            0 => None,
            width => Some(SharedExpert {
                gate: loader.weights.matrix(&format!("blk.{layer}.ffn_gate_shexp.weight"), width, h.hidden)?,
                up: loader.weights.matrix(&format!("blk.{layer}.ffn_up_shexp.weight"), width, h.hidden)?,
                down: loader.weights.matrix(&format!("blk.{layer}.ffn_down_shexp.weight"), h.hidden, width)?,
                scale: loader.weights.find_vector(&format!("blk.{layer}.ffn_gate_inp_shexp.weight"), h.hidden)?,
            }),
        };
        Ok(MixtureOfExperts {
            router: loader.weights.router(&format!("blk.{layer}.ffn_gate_inp.weight"), shape.count, h.hidden)?,
            experts: loader.experts.declare(layer, shape.count, h.hidden, shape.feed_forward)?,
            shape,
            shared,
            next: None,
        })
    }

    /// Notes the layer whose experts come next, and the norm before its router.
    pub(crate) fn precede(&mut self, norm: VectorId, next: &MixtureOfExperts) {
        let ExpertShape { count, per_token, .. } = next.shape;
        self.next = Some(NextLayer { norm, router: next.router, experts: next.experts, count, per_token });
    }

    /// x += Σ w_e · expert_e(n) + σ(s · n) · shared(n)
    pub(crate) fn forward(&self, step: &mut Step<'_>, layer: usize) -> Result<(), Error> {
        step.quantize_normed(layer)?;
        self.choose(step)?;
        step.experts.begin(self.experts, &step.scratch.experts.active)?;
        // The shared expert is computed with the first group if that is resident, else alone, while flash works.
        let mut shared = self.shared.as_ref();
        let mut has_guessed = step.prefetch == Prefetch::Off || step.tokens.len() > 1;
        while let Some(group) = step.experts.next_group(self.experts, EXPERTS_AT_ONCE) {
            let group = fitting(group, step.experts, &step.scratch.experts);
            if !step.experts.is_resident(&group) {
                if shared.is_some() {
                    self.compute(step, layer, shared.take(), 0..0)?;
                }
                self.guess(step, &mut has_guessed)?;
            }
            self.compute(step, layer, shared.take(), group.clone())?;
            step.experts.finish_group(self.experts, group)?;
        }
        if shared.is_some() {
            self.compute(step, layer, shared, 0..0)?;
        }
        self.guess(step, &mut has_guessed)?;
        if is_wide(step.tokens.len(), &self.shape) {
            step.experts.read_ahead(MoeLayer(self.experts.0 + 1))?;
        }
        self.combine(step);
        Ok(())
    }

    /// Asks once a layer for the experts that the next one will probably need.
    fn guess(&self, step: &mut Step<'_>, has_guessed: &mut bool) -> Result<(), Error> {
        if std::mem::replace(has_guessed, true) {
            return Ok(());
        }
        let shared = match &self.shared {
            None => Shared::None,
            Some(SharedExpert { scale: None, .. }) => Shared::Plain,
            Some(SharedExpert { scale: Some(_), .. }) => Shared::Scaled,
        };
        self.next.as_ref().map_or(Ok(()), |next| next.prefetch(step, self.experts, shared))
    }

    /// Adds the experts' outputs to the residual stream, each token's in ascending id.
    fn combine(&self, step: &mut Step<'_>) {
        let (tokens, hidden) = (step.tokens.len(), step.hyperparameters.hidden);
        let Step { cpu, scratch, prefetch, .. } = step;
        let learns = *prefetch == Prefetch::Speculate && tokens == 1;
        let moe = &scratch.experts;
        if learns {
            // The routed experts alone, in a buffer that is free now.
            let routed = ExpertSum { shared: None, ..moe.sum(1) };
            scratch.prefetch.learn(self.experts, cpu, hidden, &routed);
        }
        let shared = self.shared.as_ref().map(|shared| moce_kernels::SharedExpert {
            outputs: &scratch.projected[..tokens * hidden],
            gates: shared.scale.map(|_| &moe.shared_scale[..tokens]),
        });
        let sum = ExpertSum { shared, ..moe.sum(tokens) };
        cpu.combine_experts(&mut scratch.x[..tokens * hidden], hidden, &sum);
    }

    /// Scores, selection and weights of every token; then the tokens sorted by expert.
    fn choose(&self, step: &mut Step<'_>) -> Result<(), Error> {
        let ExpertShape { count, renormalise, weight_scale, .. } = self.shape;
        let tokens = step.tokens.len();
        let Step { cpu, weights, experts, scratch, routing, tap, phase, .. } = step;
        let moe = &mut scratch.experts;
        let scores = &mut moe.scores[..tokens * count];
        let router = weights.matrix(self.router);
        cpu.multiply(&mut [times(router, &scratch.normed, scores)]);

        moe.first_row.fill(0);
        let mut choices = 0;
        for (token, scores) in scores.chunks_exact_mut(count).enumerate() {
            tap.route(routing, self.experts.0, token, scores, *phase, &mut moe.selection)?;
            for expert in moe.selection.misses().filter(|&expert| routing.is_cached(self.experts.0, expert)) {
                experts.hold(self.experts, expert);
            }
            for &expert in moe.selection.evicted() {
                experts.release(self.experts, expert);
            }
            tap.routed(self.experts.0, token, scores, &moe.selection);
            cpu.softmax(scores); // p, over all experts
            let ids = moe.selection.ascending();
            let sum = if renormalise { ids.iter().fold(0.0, |sum, &id| sum + scores[id as usize]) } else { 1.0 };
            for &id in ids {
                let mut weight = scores[id as usize];
                if renormalise {
                    weight /= sum;
                }
                if weight_scale != 1.0 {
                    weight *= weight_scale;
                }
                moe.chosen[choices] = (id, weight);
                moe.first_row[id as usize + 1] += 1;
                choices += 1;
            }
            // Usually K a token; policies that drop experts choose fewer.
            moe.first_choice[token + 1] = choices as u32;
        }
        // Counting sort by expert: expert e's tokens are rows first_row[e]..first_row[e + 1] of its inputs and outputs.
        for expert in 0..count {
            moe.first_row[expert + 1] += moe.first_row[expert];
        }
        moe.next_row.copy_from_slice(&moe.first_row[..count]);
        for token in 0..tokens {
            for choice in moe.first_choice[token]..moe.first_choice[token + 1] {
                let id = &mut moe.chosen[choice as usize].0;
                let row = &mut moe.next_row[*id as usize];
                moe.token_of_row[*row as usize] = token as u32;
                *id = *row;
                *row += 1;
            }
        }
        moe.active.clear();
        moe.active.extend((0..count as u32).filter(|&e| moe.first_row[e as usize] < moe.first_row[e as usize + 1]));
        Ok(())
    }

    /// The outputs of a group of experts, and of the shared one if it is given: gate and up projection, SwiGLU, down projection.
    fn compute(
        &self,
        step: &mut Step<'_>,
        layer: usize,
        shared: Option<&SharedExpert>,
        group: Group,
    ) -> Result<(), Error> {
        let (tokens, hidden) = (step.tokens.len(), step.hyperparameters.hidden);
        let (width, shared_width) = (self.shape.feed_forward, self.shape.shared_feed_forward);
        let Step { cpu, weights, experts, scratch, .. } = step;
        let Scratch { normed, gate: shared_gate, up: shared_up, inner: shared_inner, projected, experts: moe, .. } =
            &mut **scratch;
        let ExpertScratch { gate, up, inner, output, shared_scale, first_row, token_of_row, .. } = moe;
        let rows_of = |expert: u32| first_row[expert as usize] as usize..first_row[expert as usize + 1] as usize;
        let rows: usize = experts.ids(&group).iter().map(|&expert| rows_of(expert).len()).sum();

        experts.wait(self.experts, &group, Projection::Up)?;
        let gate_and_up = [Projection::Gate, Projection::Up];
        experts.put_in_order(self.experts, &group, &gate_and_up, cpu, |expert| rows_of(expert).len())?;
        let (gate, up) = (&mut gate[..rows * width], &mut up[..rows * width]);
        let shared_gate = &mut shared_gate[..tokens * shared_width];
        let shared_up = &mut shared_up[..tokens * shared_width];
        let shared_scale = &mut shared_scale[..tokens];
        {
            let pinned = pin_all(experts, self.experts, &group)?;
            let mut products = ArrayVec::<Product<'_>, { 2 * EXPERTS_AT_ONCE + 3 }>::new();
            if let Some(shared) = shared {
                products.push(times(weights.matrix(shared.gate), normed, shared_gate));
                products.push(times(weights.matrix(shared.up), normed, shared_up));
                if let Some(scale) = shared.scale {
                    products.push(times(weights.row(scale), normed, shared_scale));
                }
            }
            let (mut gate, mut up) = (&mut *gate, &mut *up);
            for (expert, &id) in pinned.iter().zip(experts.ids(&group)) {
                let gather = &token_of_row[rows_of(id)];
                let product =
                    |weights, output| Product { weights, input: normed, input_rows: Rows::Gather(gather), output };
                products.push(product(expert.matrix(Projection::Gate), split_off(&mut gate, gather.len() * width)));
                products.push(product(expert.matrix(Projection::Up), split_off(&mut up, gather.len() * width)));
            }
            cpu.multiply(&mut products);
        }

        experts.poll()?;
        cpu.swiglu(gate, up, inner.begin(rows, width));
        quantize(cpu, inner, layer)?;
        if let Some(shared) = shared {
            if shared.scale.is_some() {
                cpu.sigmoid(shared_scale);
            }
            cpu.swiglu(shared_gate, shared_up, shared_inner.begin(tokens, shared_width));
            quantize(cpu, shared_inner, layer)?;
        }
        experts.wait(self.experts, &group, Projection::Down)?;
        experts.put_in_order(self.experts, &group, &[Projection::Down], cpu, |expert| rows_of(expert).len())?;
        let pinned = pin_all(experts, self.experts, &group)?;
        let mut products = ArrayVec::<Product<'_>, { EXPERTS_AT_ONCE + 1 }>::new();
        if let Some(shared) = shared {
            let output = &mut projected[..tokens * hidden];
            products.push(times(weights.matrix(shared.down), shared_inner, output));
        }
        // The group's ids ascend, and so do their rows of the output.
        let (mut output, mut output_row, mut first) = (&mut output[..], 0, 0);
        for (expert, &id) in pinned.iter().zip(experts.ids(&group)) {
            let range = rows_of(id);
            split_off(&mut output, (range.start - output_row) * hidden);
            output_row = range.end;
            let input_rows = Rows::Range { first, count: range.len() };
            first += range.len();
            let output = split_off(&mut output, range.len() * hidden);
            products.push(Product { weights: expert.matrix(Projection::Down), input: inner, input_rows, output });
        }
        cpu.multiply(&mut products);
        Ok(())
    }
}

/// The first experts of a group whose rows together are no more than one expert can have: all tokens. The buffers are made for that.
fn fitting(group: Group, experts: &ExpertStore, moe: &ExpertScratch) -> Group {
    let mut rows = 0;
    let fits = |&&expert: &&u32| {
        rows += (moe.first_row[expert as usize + 1] - moe.first_row[expert as usize]) as usize;
        rows <= moe.group_rows
    };
    group.start..group.start + experts.ids(&group).iter().take_while(fits).count()
}

/// Whether so many tokens need nearly every expert of a layer: with 3 choices an expert, 95 % of them if all are alike.
pub(crate) fn is_wide(tokens: usize, shape: &ExpertShape) -> bool {
    tokens * shape.per_token >= 3 * shape.count
}

/// Keeps the experts of a group where they are.
fn pin_all<'a>(
    experts: &'a ExpertStore,
    layer: MoeLayer,
    group: &Group,
) -> Result<ArrayVec<PinnedExpert<'a>, EXPERTS_AT_ONCE>, Error> {
    experts.ids(group).iter().map(|&expert| experts.pin(layer, expert)).collect()
}

/// Takes the first `len` elements off the front of a slice.
fn split_off<'a>(slice: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, rest) = std::mem::take(slice).split_at_mut(len);
    *slice = rest;
    front
}
