//! The memory plan: what an engine with its sessions needs, by part, before anything is read. One function computes it for the
//! loader, the start line and every refusal.

use crate::budget::{self, Budget};
use crate::experts::{ExpertCatalogue, StoreOptions};
use crate::scratch::ScratchSizes;
use crate::{Capacity, Error, Hyperparameters};
use moce_flash::Arena;
use moce_kernels::{Cpu, KvShape, KvType};

/// Context of a session where none is asked for, and the model's is not smaller.
const DEFAULT_CONTEXT: usize = 4096;
/// What the context is lowered to where none is asked for and much more of the experts is cached then.
const SMALL_CONTEXT: usize = 1024;
/// Most prompt tokens run at once where nothing else is said and everything is resident. More would not be faster: from here on every
/// weight is used often enough to be computed from cache, and the scratch would grow.
const RESIDENT_CHUNK: usize = 512;
/// The same where experts are streamed: each one is read once a chunk.
const STREAMED_CHUNK: usize = 4096;
/// Share of the budget that the scratch of an automatic chunk may take.
const SCRATCH_SHARE: u64 = 16;
/// Automatic chunks are multiples of this, where the context is not smaller.
const CHUNK_STEP: usize = 32;
/// Staging slots where memory is plenty: in a prompt, flash has a few milliseconds' reads ahead while attention is computed.
const STAGING_SLOTS: usize = 8;
/// Staging slots where memory is short: one being computed, one being read.
const LEAST_STAGING_SLOTS: usize = 2;
/// Share of the budget that staging may take before it shrinks: one in so many.
const STAGING_SHARE: u64 = 32;
/// Program pages, thread stacks and small allocations that come after the measurement at start.
const PROGRAM_GROWTH_BYTES: u64 = 12 << 20;

/// What is asked of a plan.
#[derive(Clone, Debug)]
pub(crate) struct Wishes<'a> {
    pub(crate) budget: Budget,
    pub(crate) capacity: Option<&'a Capacity>,
    /// Whether experts beyond the logical capacity stay in memory where there is room for them.
    pub(crate) spare_slots: bool,
    pub(crate) context: Option<usize>,
    pub(crate) chunk: Option<usize>,
    pub(crate) kv: KvType,
    pub(crate) logit_rows: usize,
    pub(crate) sessions: usize,
    pub(crate) reserve: u64,
    pub(crate) guesses: bool,
    pub(crate) block_bytes: usize,
}

/// Weights that are always in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DenseBytes {
    /// All of them.
    pub(crate) bytes: u64,
    /// Those that are read for one token.
    pub(crate) token_bytes: u64,
}

/// Memory by what it is for, in bytes, and the sizes that follow from it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// What everything has to fit into; `None` if nothing limits it.
    pub budget_bytes: Option<u64>,
    /// Program and tokenizer, measured, and what the caller reserved.
    pub program_bytes: u64,
    /// Weights that every token uses.
    pub dense_bytes: u64,
    /// Sessions that may be open at once.
    pub sessions: usize,
    /// Keys and values of all of them, and the logits of each one's last token.
    pub kv_bytes: u64,
    /// How they are kept.
    pub kv_type: KvType,
    /// Buffers of a step.
    pub scratch_bytes: u64,
    /// Slots that experts pass through.
    pub staging_bytes: u64,
    /// Slots of the experts that stay.
    pub slot_bytes: u64,
    /// Positions of a session.
    pub context: usize,
    /// Tokens of a prompt chunk.
    pub chunk: usize,
    /// Experts that fit in memory, by MoE layer.
    pub resident: Vec<usize>,
    /// Experts logically cached, by MoE layer.
    pub capacity: Vec<usize>,
    /// Experts that there are, by MoE layer.
    pub experts: Vec<usize>,
    /// Bytes of one expert, by MoE layer.
    pub expert_bytes: Vec<u64>,
    /// Experts that run for a token.
    pub experts_per_token: usize,
    /// Bytes of a layer's shared expert, as if it were in the format of the routed ones; 0 without one.
    pub shared_expert_bytes: u64,
    /// Dense weights that are read for one token: all but the embedding, unless that is the head's matrix too.
    pub dense_token_bytes: u64,
    /// Staging slots.
    pub(crate) staging: usize,
    pub(crate) scratch: ScratchSizes,
}

impl MemoryPlan {
    /// Whether this plan's shorter context leaves much more room for experts than a longer one: over a third more, or K in every layer where
    /// there were fewer.
    fn is_worth_its_context(&self, longer: &MemoryPlan) -> bool {
        3 * self.slot_bytes > 4 * longer.slot_bytes
            || longer.resident.iter().any(|&resident| resident < self.experts_per_token)
    }

    /// The sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        let &MemoryPlan { program_bytes, dense_bytes, kv_bytes, scratch_bytes, staging_bytes, slot_bytes, .. } = self;
        let parts = [program_bytes, dense_bytes, kv_bytes, scratch_bytes, staging_bytes, slot_bytes];
        // More sessions may be asked for than any memory holds.
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Whether some experts have to be read from flash while running.
    pub fn streams(&self) -> bool {
        self.resident.iter().zip(&self.experts).any(|(resident, experts)| resident < experts)
    }

    /// A capacity as experts in each MoE layer.
    ///
    /// # Errors
    /// It does not fit the model.
    pub fn resolve_capacity(&self, capacity: &Capacity) -> Result<Vec<usize>, Error> {
        capacity.resolve(&self.experts, self.experts_per_token)
    }

    pub(crate) fn new(
        dense: DenseBytes,
        catalogue: &ExpertCatalogue<'_>,
        h: &Hyperparameters,
        cpu: &Cpu,
        wishes: &Wishes<'_>,
    ) -> Result<MemoryPlan, Error> {
        let planner = Planner {
            dense,
            catalogue,
            h,
            cpu,
            wishes,
            program_bytes: (budget::resident_bytes() + PROGRAM_GROWTH_BYTES).saturating_add(wishes.reserve),
            // The factors, which have not been read, change no size.
            rope_row_bytes: h.rope.rope(None)?.table_bytes(1),
        };
        planner.plan()
    }
}

/// Buffers that may shrink where memory is short.
#[derive(Clone, Copy)]
struct Buffers {
    /// Staging slots.
    staging: usize,
    /// Most tokens of an automatic chunk.
    chunk: usize,
}

/// What still works.
const LEAST_BUFFERS: Buffers = Buffers { staging: LEAST_STAGING_SLOTS, chunk: CHUNK_STEP };

/// The inputs of a plan.
struct Planner<'a> {
    dense: DenseBytes,
    catalogue: &'a ExpertCatalogue<'a>,
    h: &'a Hyperparameters,
    cpu: &'a Cpu,
    wishes: &'a Wishes<'a>,
    program_bytes: u64,
    /// Bytes of the rotation of one token.
    rope_row_bytes: usize,
}

impl Planner<'_> {
    fn plan(&self) -> Result<MemoryPlan, Error> {
        if self.wishes.sessions == 0 {
            return Err(Error::NoSessions);
        }
        let logical =
            self.wishes.capacity.map(|capacity| capacity.resolve(&self.counts(), self.per_token())).transpose()?;
        let limit = match self.wishes.budget {
            Budget::All => None,
            Budget::Bytes(bytes) => Some(bytes),
            Budget::Auto => Some(budget::available_bytes()),
        };
        let contexts = self.contexts()?;
        // Under `--capacity` the slots are what it says, unless more are wanted.
        let wants_more = logical.is_none() || self.wishes.spare_slots || self.wishes.budget == Budget::All;
        if wants_more {
            let everything = self.with_slots(contexts[0], limit, &self.counts(), self.buffers(limit))?;
            if limit.is_none_or(|limit| everything.total_bytes() <= limit) {
                return Ok(match logical {
                    Some(capacity) => MemoryPlan { capacity, ..everything },
                    None => everything,
                });
            }
        }
        let limit = limit.expect("without a limit everything fits");
        if let Some(logical) = logical {
            return self.with_capacity(&contexts, limit, logical, wants_more);
        }
        let mut best: Option<MemoryPlan> = None;
        for &context in &contexts {
            let mut buffers = self.buffers_to_try(limit).into_iter();
            let plan = buffers.find_map(|buffers| self.fit(context, limit, buffers).transpose());
            if let Some(plan) = plan.transpose()?
                && best.as_ref().is_none_or(|longer| plan.is_worth_its_context(longer))
            {
                best = Some(plan);
            }
        }
        best.ok_or_else(|| self.too_little(limit))
    }

    /// Buffers for a limit, the largest first.
    fn buffers_to_try(&self, limit: u64) -> [Buffers; 3] {
        let buffers = self.buffers(Some(limit));
        [buffers, Buffers { staging: LEAST_STAGING_SLOTS, ..buffers }, LEAST_BUFFERS]
    }

    /// A plan for a capacity that is given, in the longest context that it fits with at all; with `wants_more` as many slots as there is room for.
    fn with_capacity(
        &self,
        contexts: &[usize],
        limit: u64,
        logical: Vec<usize>,
        wants_more: bool,
    ) -> Result<MemoryPlan, Error> {
        for &context in contexts {
            if wants_more
                && let Some(plan) = self.fit(context, limit, self.buffers(Some(limit)))?
                && plan.resident.iter().zip(&logical).all(|(resident, logical)| resident >= logical)
            {
                return Ok(MemoryPlan { capacity: logical, ..plan });
            }
            for buffers in self.buffers_to_try(limit) {
                let plan = self.with_slots(context, Some(limit), &logical, buffers)?;
                if plan.total_bytes() <= limit {
                    return Ok(plan);
                }
            }
        }
        Err(self.too_little(limit))
    }

    /// Context lengths to try, the wanted one first.
    fn contexts(&self) -> Result<Vec<usize>, Error> {
        let model = self.h.context;
        match self.wishes.context {
            Some(0) => Err(Error::ContextEmpty { model }),
            Some(wanted) if wanted > model => Err(Error::ContextTooLong { wanted, model }),
            Some(wanted) => Ok(vec![wanted]),
            None if model > SMALL_CONTEXT => Ok(vec![DEFAULT_CONTEXT.min(model), SMALL_CONTEXT]),
            None => Ok(vec![model]),
        }
    }

    fn counts(&self) -> Vec<usize> {
        self.catalogue.layers().iter().map(|layer| layer.count).collect()
    }

    fn per_token(&self) -> usize {
        self.h.experts.map_or(0, |experts| experts.per_token)
    }

    fn shared_expert_bytes(&self) -> u64 {
        let routed = self.catalogue.layers().first().map_or(0, |layer| layer.expert_bytes());
        self.h.experts.map_or(0, |shape| routed * shape.shared_feed_forward as u64 / shape.feed_forward.max(1) as u64)
    }

    /// As many slots as fit under the limit: the same number in every layer, and one more in the first ones; where not even K fit
    /// everywhere, K in the first layers and none in the last. `None` if nothing fits.
    fn fit(&self, context: usize, limit: u64, buffers: Buffers) -> Result<Option<MemoryPlan>, Error> {
        let counts = self.counts();
        let none = vec![0; counts.len()];
        let base = self.with_slots(context, Some(limit), &none, buffers)?;
        let Some(mut left) = limit.checked_sub(base.total_bytes()) else { return Ok(None) };
        let bytes: Vec<u64> =
            self.catalogue.layers().iter().map(|layer| layer.slot_bytes(self.wishes.block_bytes) as u64).collect();
        let each = left.checked_div(bytes.iter().sum()).unwrap_or(0) as usize;
        let mut slots = none;
        let mut add = |layer: usize, wanted: usize, left: &mut u64| {
            let wanted = wanted.min(counts[layer]);
            let extra = (wanted - slots[layer].min(wanted)) as u64 * bytes[layer];
            if extra <= *left {
                *left -= extra;
                slots[layer] = slots[layer].max(wanted);
            }
        };
        let uniform = if each >= self.per_token() { each } else { self.per_token() };
        for layer in 0..counts.len() {
            add(layer, uniform, &mut left);
        }
        if each >= self.per_token() {
            for layer in 0..counts.len() {
                add(layer, uniform + 1, &mut left);
            }
        }
        self.with_slots(context, Some(limit), &slots, buffers).map(Some)
    }

    /// The plan with these slots; the logical capacity is the same.
    fn with_slots(
        &self,
        context: usize,
        limit: Option<u64>,
        slots: &[usize],
        buffers: Buffers,
    ) -> Result<MemoryPlan, Error> {
        let streams = slots.iter().zip(self.counts()).any(|(&slots, count)| slots < count);
        let staging = if streams { buffers.staging } else { 0 };
        let kv = self.kv(context);
        let session_bytes = kv.bytes(self.h.layers)? + self.h.vocabulary * size_of::<f32>();
        let chunk = self.chunk(context, limit, streams).min(self.wishes.chunk.unwrap_or(buffers.chunk)).max(1);
        let options =
            StoreOptions { layers: self.catalogue.layers(), slots, staging, block_bytes: self.wishes.block_bytes };
        let classes = options.classes();
        let (layers, staging_class) = classes.split_at(classes.len() - 1);
        Ok(MemoryPlan {
            budget_bytes: limit,
            program_bytes: self.program_bytes,
            dense_bytes: self.dense.bytes,
            sessions: self.wishes.sessions,
            kv_bytes: (session_bytes as u64).saturating_mul(self.wishes.sessions as u64),
            kv_type: kv.kv_type,
            scratch_bytes: self.scratch(context, chunk).bytes(self.h, self.cpu) as u64,
            staging_bytes: Arena::bytes_for(staging_class) as u64,
            slot_bytes: Arena::bytes_for(layers) as u64,
            context,
            chunk,
            resident: slots.to_vec(),
            capacity: slots.to_vec(),
            experts: self.counts(),
            expert_bytes: self.catalogue.layers().iter().map(|layer| layer.expert_bytes()).collect(),
            experts_per_token: self.per_token(),
            shared_expert_bytes: self.shared_expert_bytes(),
            dense_token_bytes: self.dense.token_bytes,
            staging,
            scratch: self.scratch(context, chunk),
        })
    }

    fn kv(&self, context: usize) -> KvShape {
        let h = self.h;
        KvShape { kv_type: self.wishes.kv, context, kv_heads: h.kv_heads, key_dim: h.head_dim, value_dim: h.value_dim }
    }

    fn scratch(&self, context: usize, chunk: usize) -> ScratchSizes {
        ScratchSizes {
            chunk,
            kv: self.kv(context),
            logit_rows: self.wishes.logit_rows.clamp(1, chunk),
            guesses: self.wishes.guesses,
            rope_row_bytes: self.rope_row_bytes,
        }
    }

    /// The chunk asked for, or the largest whose scratch is a small share of the budget.
    fn chunk(&self, context: usize, limit: Option<u64>, streams: bool) -> usize {
        if let Some(chunk) = self.wishes.chunk {
            return chunk.clamp(1, context);
        }
        let most = if streams { STREAMED_CHUNK } else { RESIDENT_CHUNK }.min(context);
        let share = limit.map_or(u64::MAX, |limit| limit / SCRATCH_SHARE);
        let fits = |chunk: usize| self.scratch(context, chunk).bytes(self.h, self.cpu) as u64 <= share;
        if fits(most) {
            return most;
        }
        let fitting = (1..most / CHUNK_STEP).rev().map(|step| step * CHUNK_STEP).find(|&chunk| fits(chunk));
        fitting.unwrap_or(CHUNK_STEP.min(context))
    }

    /// As many staging slots as are a small share of the budget; chunks have a rule of their own.
    fn buffers(&self, limit: Option<u64>) -> Buffers {
        let layers = self.catalogue.layers().iter();
        let largest = layers.map(|layer| layer.slot_bytes(self.wishes.block_bytes)).max().unwrap_or(0) as u64;
        let share = limit.map_or(u64::MAX, |limit| limit / STAGING_SHARE);
        let affordable = share.checked_div(largest).unwrap_or(0).min(STAGING_SLOTS as u64) as usize;
        Buffers { staging: affordable.max(LEAST_STAGING_SLOTS), chunk: usize::MAX }
    }

    fn too_little(&self, budget: u64) -> Error {
        let context = self.contexts().map_or(SMALL_CONTEXT, |contexts| contexts[contexts.len() - 1]);
        let none = vec![0; self.counts().len()];
        let slots = match self.wishes.capacity.map(|capacity| capacity.resolve(&self.counts(), self.per_token())) {
            Some(Ok(capacity)) => capacity,
            _ => none,
        };
        let smallest = self.with_slots(context, None, &slots, LEAST_BUFFERS).map_or(0, |plan| plan.total_bytes());
        Error::Budget { budget, smallest, dense: self.dense.bytes, context }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architectures;
    use crate::load::Loader;
    use moce_gguf::{Gguf, Value};
    use moce_kernels::CpuOptions;
    use moce_testkit::{TinyModel, Variant, variant};

    const CONTEXT: usize = 4096;

    /// A model of 12 experts in each of two layers, of which a token runs 3, whose contexts may be long.
    fn model() -> Gguf {
        let TinyModel { gguf, .. } = TinyModel::open("qwen2moe");
        let metadata = &[("qwen2moe.context_length", Some(Value::U32(2 * CONTEXT as u32)))];
        variant(&gguf, &Variant { metadata, tensor: &|tensor, bytes| (tensor.tensor_type(), bytes) })
    }

    /// Calls `test` with a function that plans a budget and a capacity, as in a process that takes no memory itself.
    fn with_planner(spare_slots: bool, test: impl Fn(&dyn Fn(Budget, Option<&Capacity>) -> Result<MemoryPlan, Error>)) {
        let gguf = model();
        let mut loader = Loader::new(&gguf);
        let architecture = architectures::load(&mut loader).unwrap();
        let cpu = Cpu::new(&CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        test(&|budget, capacity| {
            let wishes = Wishes {
                budget,
                capacity,
                spare_slots,
                context: None,
                chunk: Some(1),
                kv: KvType::F16,
                logit_rows: 1,
                sessions: 1,
                reserve: 0,
                guesses: false,
                block_bytes: 512,
            };
            let h = architecture.hyperparameters();
            let planner = Planner {
                dense: loader.dense_bytes(),
                catalogue: &loader.experts,
                h,
                cpu: &cpu,
                wishes: &wishes,
                program_bytes: 0,
                rope_row_bytes: h.rope.rope(None)?.table_bytes(1),
            };
            planner.plan()
        });
    }

    #[test]
    fn a_capacity_lowers_the_context_only_where_it_would_not_fit_otherwise() {
        for spare_slots in [false, true] {
            with_planner(spare_slots, |plan| {
                let capacity = Capacity::Experts(4);
                let wanted = plan(Budget::Auto, Some(&capacity)).unwrap();
                // Not everything fits, but the capacity does.
                let fits = wanted.total_bytes() - if spare_slots { wanted.slot_bytes / 2 } else { 0 };
                let enough = plan(Budget::Bytes(fits), Some(&capacity)).unwrap();
                assert_eq!((enough.context, &enough.capacity[..]), (CONTEXT, &[4, 4][..]));
                let short = plan(Budget::Bytes(fits - wanted.kv_bytes / 2), Some(&capacity)).unwrap();
                assert_eq!((short.context, &short.capacity[..]), (SMALL_CONTEXT, &[4, 4][..]));
            });
        }
    }

    #[test]
    fn the_context_is_lowered_where_a_third_more_experts_are_cached_then() {
        with_planner(false, |plan| {
            let whole = plan(Budget::All, None).unwrap();
            let smallest = whole.total_bytes() - whole.kv_bytes - whole.slot_bytes;
            let budgets = (smallest..whole.total_bytes()).step_by(997);
            let plans: Vec<MemoryPlan> = budgets.filter_map(|bytes| plan(Budget::Bytes(bytes), None).ok()).collect();
            let (lowered, kept): (Vec<_>, Vec<_>) = plans.iter().partition(|plan| plan.context == SMALL_CONTEXT);
            assert!(!lowered.is_empty() && kept.iter().all(|plan| plan.context == CONTEXT));
            assert!(plans.is_sorted_by_key(|plan| plan.context));
            // What the longer context takes would hold less than a third of what is cached beside it, to an expert of each layer.
            let taken = whole.kv_bytes - whole.kv_bytes * SMALL_CONTEXT as u64 / CONTEXT as u64;
            let row = whole.slot_bytes / whole.experts[0] as u64;
            let would_be = |plan: &MemoryPlan| whole.slot_bytes.min(plan.slot_bytes + taken);
            assert!(kept.iter().all(|plan| 3 * would_be(plan) <= 4 * (plan.slot_bytes + row)));
            let before = |plan: &MemoryPlan| plan.slot_bytes.saturating_sub(taken);
            assert!(lowered.iter().all(|plan| 3 * (plan.slot_bytes + row) >= 4 * before(plan)));
        });
    }

    #[test]
    fn a_shorter_context_is_worth_nothing_where_no_more_is_cached_then() {
        with_planner(false, |plan| {
            let whole = plan(Budget::All, None).unwrap();
            let with =
                |slot_bytes, resident: &[usize]| MemoryPlan { slot_bytes, resident: resident.into(), ..whole.clone() };
            let (dense, few) = (with(0, &[]), with(60, &[3, 3]));
            assert!(!dense.is_worth_its_context(&dense), "a dense model keeps its context");
            assert!(!with(80, &[4, 4]).is_worth_its_context(&few) && with(81, &[4, 4]).is_worth_its_context(&few));
            assert!(few.is_worth_its_context(&with(60, &[6, 0])), "K in every layer");
        });
    }

    #[test]
    fn slots_are_what_the_capacity_says_unless_more_are_wanted() {
        let slots = |spare_slots, budget, expected: usize| {
            with_planner(spare_slots, |plan| {
                let plan = plan(budget, Some(&Capacity::Experts(6))).unwrap();
                assert_eq!((&plan.capacity[..], &plan.resident[..]), (&[6, 6][..], &[expected; 2][..]), "{budget:?}");
            });
        };
        for budget in [Budget::Auto, Budget::Bytes(1 << 30)] {
            slots(false, budget, 6);
            slots(true, budget, 12);
        }
        slots(false, Budget::All, 12);
    }
}
