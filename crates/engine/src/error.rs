//! What can go wrong while a model is opened or run.

use crate::tokenizer;
use moce_gguf::{Gguf, Tensor};
use std::path::PathBuf;

/// An error of this crate; messages name the file or the layer, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read, or is no GGUF file that moce understands.
    #[error(transparent)]
    Gguf(#[from] moce_gguf::Error),
    /// The vocabulary in the file is unusable.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// A routing option does not fit the model, or router scores are not finite.
    #[error(transparent)]
    Routing(#[from] moce_routing::Error),
    /// An option of the kernels is not possible on this machine.
    #[error(transparent)]
    Kernels(#[from] moce_kernels::Error),
    /// The file names an architecture that moce does not run.
    #[error("{}: architecture '{name}' is not supported (moce runs: {known})", file.display())]
    UnknownArchitecture {
        /// The model file.
        file: PathBuf,
        /// The architecture's name in the file.
        name: String,
        /// Supported names.
        known: String,
    },
    /// A metadata key without which the model cannot be run.
    #[error("{}: metadata key '{key}' is missing", file.display())]
    MissingKey {
        /// The model file.
        file: PathBuf,
        /// The key.
        key: String,
    },
    /// The metadata describe a network that cannot be.
    #[error("{}: {what}", file.display())]
    Shape {
        /// The model file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A tensor's dimensions are not those that the metadata imply.
    #[error("{}: tensor '{tensor}' has dimensions {found:?}, expected {expected:?}", file.display())]
    TensorShape {
        /// The model file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Innermost first.
        expected: Vec<usize>,
        /// Innermost first.
        found: Vec<usize>,
    },
    /// A tensor is stored in a format that moce cannot compute with.
    #[error("{}: tensor '{tensor}' is stored as {format}; {hint}", file.display())]
    TensorFormat {
        /// The model file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The format's name.
        format: String,
        /// What would work.
        hint: String,
    },
    /// The system gives no memory for the model.
    #[error("cannot reserve {bytes} bytes of memory: {cause}")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A prompt or a generation does not fit the session's context.
    #[error(
        "{wanted} tokens do not fit the context of {context}; shorten the text{}, or lower --window where a text is scored",
        if context < model { ", raise --ctx" } else { "" }
    )]
    ContextFull {
        /// Positions that would be needed.
        wanted: usize,
        /// Positions that there are.
        context: usize,
        /// The most that the model has.
        model: usize,
    },
    /// The context asked for is longer than the model's.
    #[error(
        "a context of {wanted} tokens is more than the model's {model}; lower --ctx, or --window where a text is scored"
    )]
    ContextTooLong {
        /// Positions asked for.
        wanted: usize,
        /// The model's own context.
        model: usize,
    },
    /// A context without a position was asked for.
    #[error("a context of 0 tokens was asked for; give 1 to {model}")]
    ContextEmpty {
        /// The model's own context.
        model: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Ids below this exist.
        vocabulary: usize,
    },
    /// Activations stopped being numbers: a damaged file, or a model outside f32's range.
    #[error("activations of layer {layer} are not finite; the model file may be damaged")]
    NonFinite {
        /// The layer, or the number of layers for the head.
        layer: usize,
    },
    /// Experts cannot be read from flash.
    #[error(transparent)]
    Flash(#[from] moce_flash::Error),
    /// Checksums were asked for, and the model has none.
    #[error("{}: the file has no checksums to verify fetches with; `moce pack` makes one that has", file.display())]
    NoChecksums {
        /// The model file.
        file: PathBuf,
    },
    /// The model does not fit the memory it was given.
    #[error(
        "a budget of {} is too small: this model needs at least {} ({} of it are weights that every token uses, at a context of {context}); \
         raise --memory or lower --ctx",
        mib(*budget), mib(*smallest), mib(*dense)
    )]
    Budget {
        /// Bytes that there are.
        budget: u64,
        /// Bytes that would do.
        smallest: u64,
        /// Bytes of dense weights.
        dense: u64,
        /// Context that was reckoned with.
        context: usize,
    },
    /// A capacity for each layer was given, but not for as many layers as the model has.
    #[error("capacities for {given} layers were given; the model has {layers} layers with experts")]
    CapacityLayers {
        /// Numbers given.
        given: usize,
        /// MoE layers.
        layers: usize,
    },
    /// A capacity that a layer cannot have.
    #[error("capacity {wanted} in layer {layer}: give 0, or {least} (a token's experts) to {most} (all)")]
    CapacityRange {
        /// The MoE layer.
        layer: usize,
        /// What was asked for.
        wanted: usize,
        /// Experts a token.
        least: usize,
        /// Experts of the layer.
        most: usize,
    },
    /// A cache state cannot be read or written.
    #[error("{} {what}", path.display())]
    CacheState {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A cache state of another model.
    #[error("the cache state was saved with another model (its identity is {saved}, this model's {opened})")]
    CacheStateModel {
        /// The identity in the state.
        saved: String,
        /// The identity of the opened model.
        opened: String,
    },
    /// A cache state for a session that has begun.
    #[error("a cache state can be taken up only before the first token of a session")]
    CacheStateLate,
    /// A trace cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: moce_routing::TraceError,
    },
    /// A trace's file cannot be opened, made or renamed.
    #[error("{}: {cause}", path.display())]
    TraceFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: std::io::Error,
    },
    /// A replay does not fit the model.
    #[error(transparent)]
    Replay(#[from] moce_routing::TraceError),
    /// Selections of another model.
    #[error(
        "the selections were recorded with another model (its identity is {}, this model's {opened:016x})",
        if *recorded == 0 { "unknown, as in imported traces".to_owned() } else { format!("{recorded:016x}") }
    )]
    ReplayModel {
        /// The identity in the trace.
        recorded: u64,
        /// The identity of the opened model.
        opened: u64,
    },
    /// Scores for fewer layers or positions than the session has.
    #[error("the scores to replay do not cover {layers} layers and a context of {context}; read them for as many")]
    ReplayCover {
        /// MoE layers of the model.
        layers: usize,
        /// Positions of the session.
        context: usize,
    },
    /// More tokens than were recorded.
    #[error(
        "the recorded run has {recorded} tokens, this one comes to {wanted}; shorten it (-n, --limit), or replay a longer record"
    )]
    ReplayEnd {
        /// Tokens in the trace.
        recorded: usize,
        /// Tokens that would be needed.
        wanted: usize,
    },
    /// Another text than was recorded.
    #[error(
        "token {index} of the recorded run is {recorded}, of this one {given}; a replay needs the same text, model, seed and sampling"
    )]
    ReplayToken {
        /// Place among all tokens run, from 0.
        index: usize,
        /// The id in the trace.
        recorded: u32,
        /// The id now.
        given: u32,
    },
    /// A replay where the runs do not begin a text alike: windows of another length, for instance.
    #[error(
        "at token {index} the recorded run and this one do not begin a text alike; a replay needs the same windows and the same text"
    )]
    ReplayStart {
        /// Place among all tokens run, from 0.
        index: usize,
    },
    /// An engine without a session was asked for.
    #[error("room for 0 sessions was asked for; give 1 or more (`EngineOptions::sessions`)")]
    NoSessions,
    /// As many sessions are open as memory was planned for.
    #[error(
        "memory was planned for {planned} open session(s); drop one first, or open the engine for more (`EngineOptions::sessions`)"
    )]
    SessionsFull {
        /// Sessions that may be open at once.
        planned: usize,
    },
    /// An earlier step of this session failed half-way.
    #[error("an earlier step of this session failed; clear the session and give the whole text again")]
    SessionFailed,
    /// A snapshot that the session cannot go back to.
    #[error(
        "the snapshot at position {position} is of another session, or its tokens have been overwritten; run its text again"
    )]
    SnapshotGone {
        /// Tokens that had been seen.
        position: usize,
    },
    /// An option of the sampler that cannot be.
    #[error("sampling: {option} is {found}, allowed is {allowed}")]
    Sampling {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        allowed: String,
    },
    /// A step without tokens.
    #[error("no tokens to run; give a prompt")]
    Empty,
}

impl Error {
    pub(crate) fn missing(gguf: &Gguf, key: String) -> Error {
        Error::MissingKey { file: file(gguf), key }
    }

    pub(crate) fn shape(gguf: &Gguf, what: String) -> Error {
        Error::Shape { file: file(gguf), what }
    }

    pub(crate) fn tensor_shape(gguf: &Gguf, tensor: &Tensor, expected: &[usize]) -> Error {
        Error::TensorShape {
            file: file(gguf),
            tensor: tensor.name().to_owned(),
            expected: expected.to_vec(),
            found: tensor.dims().to_vec(),
        }
    }

    pub(crate) fn no_checksums(gguf: &Gguf) -> Error {
        Error::NoChecksums { file: file(gguf) }
    }

    pub(crate) fn unknown_architecture(gguf: &Gguf, name: &str, known: String) -> Error {
        Error::UnknownArchitecture { file: file(gguf), name: name.to_owned(), known }
    }

    pub(crate) fn format(gguf: &Gguf, tensor: &Tensor, hint: &str) -> Error {
        Error::TensorFormat {
            file: file(gguf),
            tensor: tensor.name().to_owned(),
            format: tensor.tensor_type().name().to_owned(),
            hint: hint.to_owned(),
        }
    }
}

/// A size for messages.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// The first file of a model.
fn file(gguf: &Gguf) -> PathBuf {
    gguf.parts()[0].path().to_owned()
}
