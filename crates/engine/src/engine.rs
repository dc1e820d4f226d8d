//! A loaded model: file, tokenizer, weights, kernels, and the scratch that one step at a time uses.

use crate::architectures::{self, Architecture};
use crate::experts::ExpertStore;
use crate::layers::LogitsWanted;
use crate::load::Loader;
use crate::plan::MemoryPlan;
use crate::scratch::{Scratch, ScratchSizes};
use crate::step::Step;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::{Error, Hyperparameters};
use moce_gguf::Gguf;
use moce_kernels::{Cpu, CpuOptions, KvCache, KvShape, KvType, Rope, RopeParameters};
use moce_routing::{LayerShape, Phase, RoutingOptions, SessionRouting};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// How a model is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Instruction set and threads.
    pub cpu: CpuOptions,
    /// Context length of a session; `None`: 4,096 or the model's own if that is smaller.
    pub context: Option<usize>,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Most prompt tokens run at once; `None`: up to 512.
    pub chunk: Option<usize>,
    /// Tokens whose logits are computed at once; more than 1 only helps where every token's logits are wanted (perplexity).
    pub logit_rows: usize,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions { cpu: CpuOptions::default(), context: None, kv: KvType::F16, chunk: None, logit_rows: 1 }
    }
}

/// Context of a session where none is asked for, and the model's is not smaller.
const DEFAULT_CONTEXT: usize = 4096;
/// Prompt tokens run at once where nothing else is said. More would not be faster: from here on every weight is used often enough
/// to be computed from cache, and the scratch would grow.
const DEFAULT_CHUNK: usize = 512;

/// A model that is ready to run. Sessions borrow it; they take turns, one step at a time.
pub struct Engine {
    path: PathBuf,
    tokenizer: Tokenizer,
    architecture: Box<dyn Architecture>,
    weights: Weights,
    experts: ExpertStore,
    cpu: Cpu,
    rope: Rope,
    scratch: Mutex<Scratch>,
    plan: MemoryPlan,
    context: usize,
    kv: KvShape,
    chunk: usize,
}

impl Engine {
    /// Opens a GGUF file (of a split model any part) and loads it.
    ///
    /// # Errors
    /// The file is damaged or not supported, an option does not fit, or memory runs out.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<Engine, Error> {
        Engine::load(&Gguf::open(path)?, options)
    }

    /// Loads a model whose headers have been read, from files or from memory.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn load(gguf: &Gguf, options: &EngineOptions) -> Result<Engine, Error> {
        let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
        let mut loader = Loader::new(gguf);
        let architecture = architectures::load(&mut loader)?;
        let h = architecture.hyperparameters();
        let context = match options.context {
            None => DEFAULT_CONTEXT.min(h.context),
            Some(wanted) if wanted > h.context => {
                return Err(Error::ContextTooLong { wanted, model: h.context });
            }
            Some(wanted) => wanted,
        };
        let chunk = options.chunk.unwrap_or(DEFAULT_CHUNK).clamp(1, context.max(1));
        let cpu = Cpu::new(&options.cpu)?;
        let kv =
            KvShape { kv_type: options.kv, context, kv_heads: h.kv_heads, key_dim: h.head_dim, value_dim: h.value_dim };
        let sizes = ScratchSizes { chunk, kv, logit_rows: options.logit_rows.clamp(1, chunk) };
        let plan = MemoryPlan::new(&loader, h, sizes, &cpu)?;
        let (weights, experts) = loader.load(&cpu)?;
        let rope = Rope::new(&RopeParameters {
            dimensions: h.rope.dimensions,
            base: h.rope.base,
            scaling: h.rope.scaling,
            frequency_factors: architecture.frequency_factors().map(|id| weights.vector(id)),
            pairing: h.rope.pairing,
        })?;
        let scratch = Scratch::new(h, sizes, rope.table(chunk), &cpu);
        Ok(Engine {
            path: gguf.parts()[0].path().to_owned(),
            tokenizer,
            weights,
            experts,
            rope,
            scratch: Mutex::new(scratch),
            plan,
            context,
            kv,
            chunk,
            cpu,
            architecture,
        })
    }
}

impl Engine {
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

    /// Positions that a session has.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Most tokens that run in one step.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// A new session's routing state: the model's own choice, every expert cached.
    pub(crate) fn routing(&self) -> Result<SessionRouting, Error> {
        let shapes: Vec<LayerShape> = self
            .experts
            .counts()
            .map(|count| LayerShape {
                experts: count,
                experts_per_token: self.hyperparameters().experts.map_or(0, |shape| shape.per_token),
                capacity: count,
            })
            .collect();
        Ok(SessionRouting::new(&shapes, RoutingOptions::default())?)
    }

    /// What a layer of a session's KV cache keeps.
    pub(crate) fn kv_shape(&self) -> KvShape {
        self.kv
    }

    /// Runs one step. Sessions wait for each other here.
    pub(crate) fn step(&self, request: StepRequest<'_>) -> Result<(), Error> {
        // A panic in a step leaves nothing behind that the next one reads, so a poisoned lock is taken over.
        let mut scratch = self.scratch.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let StepRequest { kv, routing, tokens, first_position, phase, mut logits, last_logits } = request;
        self.rope.fill(first_position..first_position + tokens.len(), &mut scratch.rope);
        let mut step = Step {
            cpu: &self.cpu,
            hyperparameters: self.hyperparameters(),
            weights: &self.weights,
            experts: &self.experts,
            kv,
            routing,
            scratch: &mut scratch,
            tokens,
            first_position,
            phase,
            logits: logits.reborrow(),
        };
        self.architecture.forward(&mut step)?;
        if let LogitsWanted::Last = logits {
            last_logits.copy_from_slice(&scratch.logits[..last_logits.len()]);
        }
        Ok(())
    }
}

/// What a session asks the engine for.
pub(crate) struct StepRequest<'a> {
    pub(crate) kv: &'a mut KvCache,
    pub(crate) routing: &'a mut SessionRouting,
    pub(crate) tokens: &'a [u32],
    pub(crate) first_position: usize,
    pub(crate) phase: Phase,
    pub(crate) logits: LogitsWanted<'a>,
    /// Where the last token's logits go, if they are wanted `[vocabulary]`.
    pub(crate) last_logits: &'a mut [f32],
}
