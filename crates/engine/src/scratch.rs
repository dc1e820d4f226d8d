//! The buffers that a step computes in, made once for the largest chunk; a step allocates nothing.

use crate::Hyperparameters;
use crate::layers::PrefetchScratch;
use moce_kernels::{Activations, Cpu, ExpertSum, KvShape, RopeTable};
use moce_routing::Selection;

/// Buffers of one engine; one step at a time uses them.
pub(crate) struct Scratch {
    /// Residual stream `[tokens, hidden]`.
    pub(crate) x: Vec<f32>,
    /// Normed residual stream `[tokens, hidden]`, also in quantised form.
    pub(crate) normed: Activations,
    /// `[tokens, heads · head_dim]`
    pub(crate) query: Vec<f32>,
    /// `[tokens, kv_heads · head_dim]`
    pub(crate) key: Vec<f32>,
    /// `[tokens, kv_heads · value_dim]`
    pub(crate) value: Vec<f32>,
    /// Rotation of each token of the step.
    pub(crate) rope: RopeTable,
    /// Rows of attention scores, one a thread.
    pub(crate) attention: Vec<f32>,
    /// `[tokens, heads · value_dim]`
    pub(crate) attended: Activations,
    /// A layer's output before it is added to the residual stream `[tokens, hidden]`; in MoE layers the shared expert's.
    pub(crate) projected: Vec<f32>,
    /// Gate projection of the dense network or of the shared expert `[tokens, width]`.
    pub(crate) gate: Vec<f32>,
    /// Up projection, likewise.
    pub(crate) up: Vec<f32>,
    /// SwiGLU of both, likewise.
    pub(crate) inner: Activations,
    /// Buffers of the routed experts; empty in a dense model.
    pub(crate) experts: ExpertScratch,
    /// Guesses about the next layer; empty where nothing is guessed.
    pub(crate) prefetch: PrefetchScratch,
    /// `[logit_rows, vocabulary]`
    pub(crate) logits: Vec<f32>,
}

/// Buffers of a layer of routed experts. A *row* is one token at one expert; rows are sorted by expert.
pub(crate) struct ExpertScratch {
    /// Router scores, then probabilities `[tokens, experts]`.
    pub(crate) scores: Vec<f32>,
    /// The choice for the token at hand.
    pub(crate) selection: Selection,
    /// The tokens' chosen experts, token after token, ascending by id, as (row, weight); at most `[tokens, experts_per_token]`.
    pub(crate) chosen: Vec<(u32, f32)>,
    /// First choice of each token in `chosen`, and the number of choices behind the last `[tokens + 1]`.
    pub(crate) first_choice: Vec<u32>,
    /// First row of each expert, and the number of rows behind the last `[experts + 1]`.
    pub(crate) first_row: Vec<u32>,
    /// Next free row of each expert while rows are given out `[experts]`.
    pub(crate) next_row: Vec<u32>,
    /// Experts with at least one row, ascending.
    pub(crate) active: Vec<u32>,
    /// `[rows]`
    pub(crate) token_of_row: Vec<u32>,
    /// Most rows of the experts that are computed together: as many as one expert can have, and one token's.
    pub(crate) group_rows: usize,
    /// `[group_rows, feed_forward]`
    pub(crate) gate: Vec<f32>,
    /// `[group_rows, feed_forward]`
    pub(crate) up: Vec<f32>,
    /// `[group_rows, feed_forward]`
    pub(crate) inner: Activations,
    /// `[rows, hidden]`
    pub(crate) output: Vec<f32>,
    /// What the shared expert's output is scaled by `[tokens]`.
    pub(crate) shared_scale: Vec<f32>,
}

/// What the buffers are made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScratchSizes {
    /// Most tokens a step.
    pub(crate) chunk: usize,
    /// What a layer of the KV cache keeps.
    pub(crate) kv: KvShape,
    /// Tokens whose logits are computed at once.
    pub(crate) logit_rows: usize,
    /// Whether there are guesses.
    pub(crate) guesses: bool,
    /// Bytes of the rotation of one token.
    pub(crate) rope_row_bytes: usize,
}

impl ScratchSizes {
    /// Bytes that [`Scratch::new`] will hold, the short lists of ids aside.
    pub(crate) fn bytes(&self, h: &Hyperparameters, cpu: &Cpu) -> usize {
        let &ScratchSizes { chunk, logit_rows, .. } = self;
        let widest = widest_feed_forward(h);
        let projections = h.heads * h.head_dim + h.kv_heads * (h.head_dim + h.value_dim);
        let per_token = 2 * h.hidden + projections + 2 * widest;
        let mut floats = chunk * per_token + logit_rows * h.vocabulary + self.attention_floats(cpu);
        let mut activations = Activations::bytes(chunk, h.hidden)
            + Activations::bytes(chunk, h.heads * h.value_dim)
            + Activations::bytes(chunk, widest);
        if let Some(experts) = h.experts {
            let rows = chunk * experts.per_token;
            // Each row has an id of its token, and a (row, weight) pair: three more floats' worth.
            let group_rows = chunk.max(experts.per_token);
            floats += chunk * (experts.count + 1) + rows * (h.hidden + 3) + group_rows * 2 * experts.feed_forward;
            activations += Activations::bytes(group_rows, experts.feed_forward);
            if self.guesses {
                activations += PrefetchScratch::bytes(h.layers, h.hidden, experts.count);
            }
        }
        floats * size_of::<f32>() + activations + chunk * self.rope_row_bytes
    }

    fn attention_floats(&self, cpu: &Cpu) -> usize {
        cpu.attention_scratch_len(&self.kv)
    }
}

/// Width of the widest network that every token runs: dense or shared expert.
fn widest_feed_forward(h: &Hyperparameters) -> usize {
    h.feed_forward.max(h.experts.map_or(0, |experts| experts.shared_feed_forward))
}

/// A buffer whose memory is there from the start, so that the peak does not depend on how far a run gets. What is read before it has been
/// written makes the step fail.
fn populated(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

impl Scratch {
    pub(crate) fn new(h: &Hyperparameters, sizes: ScratchSizes, rope: RopeTable, cpu: &Cpu) -> Scratch {
        let ScratchSizes { chunk, logit_rows, .. } = sizes;
        let widest = widest_feed_forward(h);
        Scratch {
            x: populated(chunk * h.hidden),
            normed: Activations::new(chunk, h.hidden),
            query: populated(chunk * h.heads * h.head_dim),
            key: populated(chunk * h.kv_heads * h.head_dim),
            value: populated(chunk * h.kv_heads * h.value_dim),
            rope,
            attention: populated(sizes.attention_floats(cpu)),
            attended: Activations::new(chunk, h.heads * h.value_dim),
            projected: populated(chunk * h.hidden),
            gate: populated(chunk * widest),
            up: populated(chunk * widest),
            inner: Activations::new(chunk, widest),
            experts: ExpertScratch::new(h, chunk),
            prefetch: match h.experts {
                Some(shape) if sizes.guesses => PrefetchScratch::new(h.layers, h.hidden, shape.count, shape.per_token),
                _ => PrefetchScratch::none(),
            },
            logits: populated(logit_rows * h.vocabulary),
        }
    }
}

impl ExpertScratch {
    /// What the routed experts gave to the first `tokens` tokens.
    pub(crate) fn sum(&self, tokens: usize) -> ExpertSum<'_> {
        let first = &self.first_choice[..=tokens];
        let chosen = &self.chosen[..first[tokens] as usize];
        ExpertSum { chosen, first, outputs: &self.output, shared: None }
    }

    fn new(h: &Hyperparameters, chunk: usize) -> ExpertScratch {
        let (count, per_token, width) = h.experts.map_or((0, 0, 0), |e| (e.count, e.per_token, e.feed_forward));
        let rows = chunk * per_token;
        let group_rows = chunk.max(per_token);
        let hidden = if count == 0 { 0 } else { h.hidden };
        ExpertScratch {
            scores: populated(chunk * count),
            selection: Selection::with_capacity(per_token),
            chosen: vec![(0, 0.0); rows],
            first_choice: vec![0; chunk + 1],
            first_row: vec![0; count + 1],
            next_row: vec![0; count],
            active: Vec::with_capacity(count),
            token_of_row: vec![0; rows],
            group_rows,
            gate: populated(group_rows * width),
            up: populated(group_rows * width),
            inner: Activations::new(group_rows, width),
            output: populated(rows * hidden),
            shared_scale: populated(chunk),
        }
    }
}
