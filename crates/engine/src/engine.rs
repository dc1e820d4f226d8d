//! A loaded model: file, tokenizer, weights, kernels, and the scratch that one step at a time uses.

use crate::architectures::{self, Architecture};
use crate::budget::Budget;
use crate::experts::{ExpertStore, MoeLayer};
use crate::flash::{self, FlashOptions};
use crate::hyperparameters::ExpertShape;
use crate::layers::{LogitsWanted, Prefetch, is_wide};
use crate::load::Loader;
use crate::plan::{MemoryPlan, Wishes};
use crate::scratch::Scratch;
use crate::step::Step;
use crate::tap::RoutingTap;
use crate::telemetry::Traffic;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::{Capacity, Error, Hyperparameters, ModelIdentity, packed};
use moce_flash::Files;
use moce_gguf::Gguf;
use moce_kernels::{Cpu, CpuOptions, KvCache, KvShape, KvType, Rope};
use moce_routing::{LayerShape, Phase, Policy, RoutingOptions, SessionRouting};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// How a model is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Instruction set and threads.
    pub cpu: CpuOptions,
    /// What everything that the process holds has to fit into.
    pub memory: Budget,
    /// Experts logically cached in each layer; `None`: what the budget gives.
    pub capacity: Option<Capacity>,
    /// Whether experts beyond the capacity stay in memory where there is room for them: for studies, whose results do not depend on it.
    pub spare_slots: bool,
    /// How sessions choose experts, and which cached ones leave.
    pub routing: RoutingOptions,
    /// How experts are read from flash.
    pub flash: FlashOptions,
    /// Whether experts are read before the router asks for them; it changes no result.
    pub prefetch: Prefetch,
    /// Context length of a session; `None`: 4,096 or the model's own if that is smaller, less where memory is short.
    pub context: Option<usize>,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Most prompt tokens run at once; `None`: up to 512, and 4,096 where experts are streamed.
    pub chunk: Option<usize>,
    /// Tokens whose logits are computed at once; more than 1 only helps where every token's logits are wanted (perplexity).
    pub logit_rows: usize,
    /// Sessions that may be open at once, at least 1: the memory plan makes room for them.
    pub sessions: usize,
    /// Bytes that the caller needs beside the engine; the plan leaves them free.
    pub reserve: u64,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            cpu: CpuOptions::default(),
            memory: Budget::Auto,
            capacity: None,
            spare_slots: false,
            routing: RoutingOptions::default(),
            flash: FlashOptions::default(),
            prefetch: Prefetch::Auto,
            context: None,
            kv: KvType::F16,
            chunk: None,
            logit_rows: 1,
            sessions: 1,
            reserve: 0,
        }
    }
}

/// A model that is ready to run. Its sessions take turns, one step at a time.
pub struct Engine {
    path: PathBuf,
    tokenizer: Tokenizer,
    architecture: Box<dyn Architecture>,
    weights: Weights,
    cpu: Cpu,
    rope: Rope,
    workspace: Mutex<Workspace>,
    open_sessions: AtomicUsize,
    /// As of the last step, for whoever asks while one runs.
    traffic: Mutex<Traffic>,
    plan: MemoryPlan,
    flash: String,
    prefetch: Prefetch,
    routing: RoutingOptions,
    kv: KvShape,
    identity: ModelIdentity,
    file_bytes: u64,
    /// By MoE layer.
    expert_bytes: Vec<u64>,
}

const NO_PANIC: &str = "nothing panics under this lock";

/// What one step at a time uses.
struct Workspace {
    scratch: Scratch,
    experts: ExpertStore,
}

impl Engine {
    /// Opens a GGUF file (of a split model any part) and loads it.
    ///
    /// # Errors
    /// The file is damaged or not supported, an option does not fit, or memory does not suffice.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Engine, Error> {
        Engine::load(&Gguf::open(path)?, options)
    }

    /// Loads a model whose headers have been read, from files or from memory.
    ///
    /// # Errors
    /// As [`Engine::open`], or a file has changed since it was opened.
    pub fn load(gguf: &Gguf, options: &EngineOptions) -> Result<Engine, Error> {
        let Declared { tokenizer, cpu, architecture, loader, files, prefetch, plan } = Declared::new(gguf, options)?;
        let h = architecture.hyperparameters();
        let expert_bytes = loader.experts.layers().iter().map(|layer| layer.expert_bytes()).collect();
        if loader.experts.is_foreign(cpu.isa()) {
            tracing::warn!(
                "the experts are packed for another CPU than this one ({}): they are re-ordered as they land, which takes time; \
                 pack the original again with --isa {0}",
                cpu.isa()
            );
        }
        let check = options.flash.verify.then(|| packed::check(gguf)).transpose()?;
        tracing::info!(architecture = h.architecture, isa = %cpu.isa(), threads = cpu.threads(), "model declared");
        tracing::info!(?plan, "memory planned");

        let Loader { weights, experts, .. } = loader;
        let weights = weights.load(&cpu)?;
        let identity = ModelIdentity::of(gguf, &h.architecture)?;
        // The files of a model without experts are looked at only here.
        files.check_unchanged()?;
        let (mut experts, flash) = flash::open_store(experts.layers(), files, &plan, &options.flash, check)?;
        tracing::info!(flash, "files opened");
        experts.preload(&cpu)?;
        tracing::info!("resident experts loaded");
        let rope = h.rope.rope(architecture.frequency_factors().map(|id| weights.vector(id)))?;
        let scratch = Scratch::new(h, plan.scratch, rope.table(plan.chunk), &cpu);
        let routing = resolved(&options.routing, h.experts, plan.experts.len())?;
        Ok(Engine {
            path: gguf.parts()[0].path().to_owned(),
            tokenizer,
            weights,
            rope,
            traffic: Mutex::new(experts.traffic()),
            workspace: Mutex::new(Workspace { scratch, experts }),
            open_sessions: AtomicUsize::new(0),
            kv: plan.scratch.kv,
            plan,
            flash,
            prefetch,
            routing,
            identity,
            file_bytes: gguf.parts().iter().map(moce_gguf::Part::bytes).sum(),
            expert_bytes,
            cpu,
            architecture,
        })
    }

    /// Which model a file holds.
    ///
    /// # Errors
    /// It names no architecture.
    pub fn identity_of(gguf: &Gguf) -> Result<ModelIdentity, Error> {
        ModelIdentity::of(gguf, packed::architecture(gguf)?)
    }

    /// The memory plan that [`Engine::load`] would follow; no tensor data is read.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn plan_for(gguf: &Gguf, options: &EngineOptions) -> Result<MemoryPlan, Error> {
        Ok(Declared::new(gguf, options)?.plan)
    }

    /// The model file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        self.architecture.hyperparameters()
    }

    /// Text to token ids and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Kernels and worker threads.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// What the engine's memory is used for.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Which model this is, for files that belong to it.
    pub fn identity(&self) -> ModelIdentity {
        self.identity
    }

    /// Bytes of the model's files.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of one expert, by MoE layer.
    pub fn expert_bytes(&self) -> &[u64] {
        &self.expert_bytes
    }

    /// How experts are read, for people.
    pub fn flash(&self) -> &str {
        &self.flash
    }

    /// Positions that a session has.
    pub fn context(&self) -> usize {
        self.plan.context
    }

    /// Most tokens that run in one step.
    pub fn chunk(&self) -> usize {
        self.plan.chunk
    }

    /// How sessions choose experts, with every default of the policies written out.
    pub fn routing(&self) -> &RoutingOptions {
        &self.routing
    }

    /// What has been read from flash since the model was loaded; a step that runs is not counted yet.
    pub fn traffic(&self) -> Traffic {
        *self.traffic.lock().expect(NO_PANIC)
    }

    fn note_traffic(&self, experts: &ExpertStore) {
        *self.traffic.lock().expect(NO_PANIC) = experts.traffic();
    }

    /// What a layer of a session's KV cache keeps.
    pub(crate) fn kv_shape(&self) -> KvShape {
        self.kv
    }

    /// Lets a session in, if there is room for one more.
    pub(crate) fn take_seat(self: &Arc<Engine>) -> Result<Seat, Error> {
        let planned = self.plan.sessions;
        let one_more = |open| (open < planned).then_some(open + 1);
        match self.open_sessions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Seat(Arc::clone(self))),
            Err(_) => Err(Error::SessionsFull { planned }),
        }
    }

    /// How a session would route that is given these options and `capacity` experts logically cached in each MoE layer: its policies with
    /// every default written out. For work that comes to it late.
    ///
    /// # Errors
    /// As [`Session::with_routing`](crate::Session::with_routing).
    pub fn resolve_routing(&self, options: &RoutingOptions, capacity: &[usize]) -> Result<RoutingOptions, Error> {
        Ok(self.new_routing(options, capacity)?.options().clone())
    }

    /// A new session's routing state with `capacity` experts logically cached in each MoE layer.
    pub(crate) fn new_routing(&self, options: &RoutingOptions, capacity: &[usize]) -> Result<SessionRouting, Error> {
        if capacity.len() != self.plan.experts.len() {
            return Err(Error::CapacityLayers { given: capacity.len(), layers: self.plan.experts.len() });
        }
        let layers = self.plan.experts.iter().zip(capacity);
        let shapes = layers.map(|(&experts, &capacity)| LayerShape {
            experts,
            experts_per_token: self.hyperparameters().experts.map_or(0, |shape| shape.per_token),
            capacity,
        });
        Ok(SessionRouting::new(&shapes.collect::<Vec<_>>(), options.clone())?)
    }

    /// What a session has cached stays, if there is room, until [`Engine::end_routing`].
    pub(crate) fn hold(&self, routing: &SessionRouting) {
        let mut workspace = self.lock();
        for layer in 0..routing.layer_count() {
            routing.cached(layer).for_each(|expert| workspace.experts.hold(MoeLayer(layer), expert));
        }
    }

    /// The session's cached experts may leave.
    pub(crate) fn end_routing(&self, routing: &SessionRouting) {
        let mut workspace = self.lock();
        for layer in 0..routing.layer_count() {
            routing.cached(layer).for_each(|expert| workspace.experts.release(MoeLayer(layer), expert));
        }
    }

    /// Reads a session's cached experts in idle time, as far as they are absent and there is room.
    pub(crate) fn warm_up(&self, routing: &SessionRouting) -> Result<(), Error> {
        let mut workspace = self.lock();
        for layer in 0..routing.layer_count() {
            // The most recent first: they are the likeliest to be chosen soon.
            let cached: Vec<u32> = routing.cached(layer).collect();
            workspace.experts.read_in_idle_time(MoeLayer(layer), cached.iter().rev().copied())?;
        }
        self.note_traffic(&workspace.experts);
        Ok(())
    }

    /// Looks whether the model's files are what they were; to be called when a request starts.
    pub(crate) fn check_files(&self) -> Result<(), Error> {
        self.lock().experts.check_files()
    }

    /// Runs one step. Sessions wait for each other here.
    pub(crate) fn step(&self, request: StepRequest<'_>) -> Result<(), Error> {
        let mut workspace = self.lock();
        let _bound = self.cpu.bind_caller();
        let Workspace { scratch, experts } = &mut *workspace;
        let StepRequest { kv, routing, tap, tokens, first_position, phase, mut logits, last_logits } = request;
        if let Some(shape) = &self.hyperparameters().experts
            && is_wide(tokens.len(), shape)
        {
            experts.read_ahead(MoeLayer(0))?;
        }
        self.rope.fill(first_position..first_position + tokens.len(), &mut scratch.rope);
        let mut step = Step {
            cpu: &self.cpu,
            hyperparameters: self.hyperparameters(),
            weights: &self.weights,
            experts,
            kv,
            routing,
            tap,
            scratch,
            tokens,
            first_position,
            phase,
            prefetch: if self.plan.streams() { self.prefetch } else { Prefetch::Off },
            logits: logits.reborrow(),
        };
        let outcome = self.architecture.forward(&mut step);
        if outcome.is_err() {
            experts.abandon();
        }
        self.note_traffic(experts);
        outcome.map_err(|error| match error {
            // No wonder, if the file is another by now.
            Error::NonFinite { .. } => experts.check_files().err().unwrap_or(error),
            error => error,
        })?;
        if let Some(row) = logits.last_row(tokens.len(), self.plan.scratch.logit_rows) {
            let vocabulary = last_logits.len();
            last_logits.copy_from_slice(&scratch.logits[row * vocabulary..(row + 1) * vocabulary]);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Workspace> {
        self.workspace.lock().unwrap_or_else(|poisoned| {
            // A panic in a step leaves nothing behind that the next one reads, once the store has come to rest.
            let mut workspace = poisoned.into_inner();
            workspace.experts.abandon();
            self.workspace.clear_poison();
            workspace
        })
    }
}

/// Routing with every default of its policies written out for so many such layers.
fn resolved(routing: &RoutingOptions, experts: Option<ExpertShape>, layers: usize) -> Result<RoutingOptions, Error> {
    let Some(ExpertShape { count, per_token, .. }) = experts else { return Ok(routing.clone()) };
    let resolved = |policy: &Policy| {
        policy.check_layers(layers)?;
        policy.resolved(count, per_token)
    };
    let policy = resolved(&routing.policy)?;
    let prompt_policy = resolved(&routing.prompt_policy)?;
    Ok(RoutingOptions { policy, prompt_policy, ..routing.clone() })
}

/// A model whose tensors have been declared and whose memory has been planned, before any tensor data is read.
struct Declared<'g> {
    tokenizer: Tokenizer,
    cpu: Cpu,
    architecture: Box<dyn Architecture>,
    loader: Loader<'g>,
    files: Files,
    prefetch: Prefetch,
    plan: MemoryPlan,
}

impl<'g> Declared<'g> {
    fn new(gguf: &'g Gguf, options: &EngineOptions) -> Result<Declared<'g>, Error> {
        // First everything that the plan measures instead of computing.
        let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
        let cpu = Cpu::new(&options.cpu)?;
        let mut loader = Loader::new(gguf);
        let architecture = architectures::load(&mut loader)?;
        let files = flash::open_files(gguf, options.flash.direct)?;
        let expert_bytes = loader.experts.layers().iter().map(|layer| layer.expert_bytes()).max();
        let prefetch = options.prefetch.resolve(expert_bytes.unwrap_or(0));
        let wishes = Wishes {
            budget: options.memory,
            capacity: options.capacity.as_ref(),
            spare_slots: options.spare_slots,
            context: options.context,
            chunk: options.chunk,
            kv: options.kv,
            logit_rows: options.logit_rows,
            sessions: options.sessions,
            reserve: options.reserve,
            guesses: prefetch != Prefetch::Off,
            block_bytes: files.block_bytes(),
        };
        let h = architecture.hyperparameters();
        let plan = MemoryPlan::new(loader.dense_bytes(), &loader.experts, h, &cpu, &wishes)?;
        Ok(Declared { tokenizer, cpu, architecture, loader, files, prefetch, plan })
    }
}

/// A session's place among those that the memory plan makes room for.
pub(crate) struct Seat(Arc<Engine>);

impl Seat {
    /// The engine that it is in.
    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.open_sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a session asks the engine for.
pub(crate) struct StepRequest<'a> {
    pub(crate) kv: &'a mut KvCache,
    pub(crate) routing: &'a mut SessionRouting,
    pub(crate) tap: &'a mut RoutingTap,
    pub(crate) tokens: &'a [u32],
    pub(crate) first_position: usize,
    pub(crate) phase: Phase,
    pub(crate) logits: LogitsWanted<'a>,
    /// Where the last token's logits go, if any are wanted and the step succeeds `[vocabulary]`.
    pub(crate) last_logits: &'a mut [f32],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ObservedStep, RoutingObserver, Session};
    use moce_routing::Selection;
    use moce_testkit::TinyModel;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Panics when an expert leaves the cache.
    struct Panics;

    impl RoutingObserver for Panics {
        fn begin(&mut self, _: &ObservedStep<'_>) {}

        fn routed(&mut self, _: usize, _: usize, _: &[f32], selection: &Selection) {
            assert!(selection.evicted().is_empty(), "an expert has left");
        }

        fn end(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn finish(self: Box<Self>) -> Result<(), Error> {
            Ok(())
        }
    }

    /// An expert that nobody lets go would keep its slot as long as the engine lives.
    #[test]
    fn an_observer_that_panics_leaves_no_expert_held() {
        let TinyModel { gguf, tokens, .. } = TinyModel::open("qwen2moe");
        let cpu = CpuOptions { threads: Some(1), ..CpuOptions::default() };
        let options = EngineOptions { cpu, capacity: Some(Capacity::Experts(4)), ..EngineOptions::default() };
        let engine = Arc::new(Engine::load(&gguf, &options).unwrap());
        let mut session = Session::new(&engine).unwrap();
        session.observe(Box::new(Panics));
        assert!(catch_unwind(AssertUnwindSafe(|| session.prompt(&tokens))).is_err());
        assert!(engine.lock().experts.held() > 0);
        drop(session);
        assert_eq!(engine.lock().experts.held(), 0);
    }
}
