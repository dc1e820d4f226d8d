//! What can go wrong in a measurement.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] moce_engine::Error),
    /// The text could not be turned into tokens.
    #[error(transparent)]
    Tokenizer(#[from] moce_engine::tokenizer::Error),
    /// Too little text.
    #[error("the text has {tokens} tokens; one window needs {needed} (a shorter --window or a longer text helps)")]
    TextTooShort {
        /// Tokens in the text, within the limit.
        tokens: usize,
        /// Tokens of one window with its context.
        needed: usize,
    },
    /// A grid of policies that cannot be read.
    #[error("routing grid '{part}': {why}")]
    Grid {
        /// The part in question.
        part: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two cells of a sweep would have one result file.
    #[error("the grid has cell {name} twice")]
    CellTwice {
        /// Its name.
        name: String,
    },
    /// A file of a sweep's folder cannot be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system or the parser says.
        cause: std::io::Error,
    },
    /// A sweep's folder holds results of another model, text or window.
    #[error("{} belongs to another study (another model, text, window or limit); choose another folder", path.display())]
    OtherStudy {
        /// The result in question.
        path: PathBuf,
    },
    /// Nothing to join.
    #[error("the folders to merge into {} hold no results", path.display())]
    NoResults {
        /// The output folder.
        path: PathBuf,
    },
    /// A profile of another model.
    #[error("the profile was made for {made_for}, another model; `moce tune` makes one for this")]
    OtherModel {
        /// File name of the model that it was made for.
        made_for: String,
    },
    /// Nothing can be said about the spread of so few windows.
    #[error(
        "half of the text has {windows} windows; two are the least, fifty are good (a longer text or a shorter --window helps)"
    )]
    TooFewWindows {
        /// Windows in a half.
        windows: usize,
    },
    /// A trace is damaged, or cannot be written.
    #[error(transparent)]
    Trace(#[from] moce_engine::routing::TraceError),
    /// A policy or eviction does not fit the layers of a trace.
    #[error(transparent)]
    Routing(#[from] moce_engine::routing::Error),
    /// Something needs scores, and the trace has none.
    #[error("{what} needs router scores, and the trace holds selections alone; record one with `moce trace record`")]
    NeedsScores {
        /// What needs them.
        what: String,
    },
    /// A trace that cannot be simulated as asked.
    #[error("{0}")]
    Simulation(String),
    /// Another engine's record is wrong.
    #[error("line {line}: {problem}")]
    Import {
        /// The line, from 1.
        line: u32,
        /// What is wrong.
        problem: String,
    },
    /// A stream cannot be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The caller ended it.
    #[error("interrupted")]
    Interrupted,
    /// A BOS token was asked for, but the vocabulary has none.
    #[error("the model's vocabulary names no BOS token, so --bos is not possible")]
    NoBos,
}
