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
    #[error(
        "the text has {tokens} tokens; one window needs {} ({} helps)", window + 1,
        if *is_limited { format!("--limit {window}, or a shorter --window,") } else { "a shorter --window or a longer text".to_owned() }
    )]
    TextTooShort {
        /// Tokens in the text.
        tokens: usize,
        /// Tokens predicted in a window; the one before them is its context.
        window: usize,
        /// Whether it is a limit that leaves too few.
        is_limited: bool,
    },
    /// A model that is broken, or not made for this text.
    #[error(
        "a window of the text costs {nats_per_token:.1} nats a token, which has no perplexity; `moce verify` checks the model's file"
    )]
    NoPerplexity {
        /// Mean negative log likelihood of the window.
        nats_per_token: f64,
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
    #[error("two cells of the grid would have one file, {name}.json; name a file of capacities in another way")]
    SameName {
        /// The name.
        name: String,
    },
    /// A file that cannot be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system or the parser says.
        cause: std::io::Error,
    },
    /// A folder that a sweep did not write, with files that a sweep would replace.
    #[error("{} is there, and no sweep's cells beside it; choose another folder", path.display())]
    ForeignFolder {
        /// The file.
        path: PathBuf,
    },
    /// A sweep's folder holds results of another study.
    #[error("{} belongs to another study (another model, text, --window, --limit, --bos, --kl, --kv, --touch or --start); choose another folder", path.display())]
    OtherStudy {
        /// The result in question.
        path: PathBuf,
    },
    /// A sweep's folder holds a result that was measured with something else than its name says now.
    #[error("{} was measured with other capacities, routing or eviction than its name stands for now (has a file changed?); choose another folder", path.display())]
    OtherCell {
        /// The result in question.
        path: PathBuf,
    },
    /// Folders to join do not agree.
    #[error("{} and {} are different results of one cell, or different capacities under one name; nothing was joined", one.display(), other.display())]
    TwoResults {
        /// A result.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// Nothing to join.
    #[error("the folders to merge into {} hold no results", path.display())]
    NoResults {
        /// The output folder.
        path: PathBuf,
    },
    /// A model that routes nothing.
    #[error("the model has no experts, so there is no routing to study")]
    NoExperts,
    /// Caches that begin with experts in them.
    #[error("a profile is measured with caches that start empty; tuning takes no --start")]
    WarmStart,
    /// A profile of another model.
    #[error("the profile was made for {made_for}, another model; `moce tune` makes one for this")]
    OtherModel {
        /// File name of the model that it was made for.
        made_for: String,
    },
    /// Nothing can be said about the spread of so few windows.
    #[error(
        "half of the text has {tokens} tokens to score, {} windows of {window}; {least} are the least, fifty are good ({} helps)",
        tokens / window, more_windows(*tokens, *window, *least, *is_limited)
    )]
    TooFewWindows {
        /// Tokens to score in the shorter half.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
        /// Windows that are needed.
        least: usize,
        /// Whether it is a limit that leaves no more.
        is_limited: bool,
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
    #[error("cannot read or write: {0}")]
    Io(#[from] std::io::Error),
    /// The caller ended it.
    #[error("interrupted")]
    Interrupted,
    /// A BOS token was asked for, but the vocabulary has none.
    #[error("the model's vocabulary names no BOS token, so --bos is not possible")]
    NoBos,
    /// A line that is no question.
    #[error("{}, line {line}: {why}", path.display())]
    Question {
        /// The file.
        path: PathBuf,
        /// The line, or of a table the row, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A subject that was asked for.
    #[error("there is no subject '{subject}' in the data")]
    NoSubject {
        /// Its name.
        subject: String,
    },
    /// Too few examples.
    #[error("{wanted} example questions are wanted for '{subject}', and there are {have} (--shot-count sets how many)")]
    TooFewShots {
        /// The subject; may be empty.
        subject: String,
        /// Examples that there are.
        have: usize,
        /// Examples that are wanted.
        wanted: usize,
    },
    /// Examples with choices for questions without, or the other way round.
    #[error("the example questions are of another kind than the questions of '{subject}': choices on one side only")]
    OtherShots {
        /// The subject; may be empty.
        subject: String,
    },
    /// A continuation that cannot be scored.
    #[error(
        "question {question} of '{subject}': the tokens of a choice are none of their own, or more than the context takes"
    )]
    NoContinuation {
        /// The subject; may be empty.
        subject: String,
        /// The question, from 0.
        question: usize,
    },
    /// No room for an answer.
    #[error("a context of {context} leaves no room for a question beside an answer of {answer} tokens; --ctx sets it")]
    ContextTooShort {
        /// Positions of a session.
        context: usize,
        /// Most tokens of an answer.
        answer: usize,
    },
    /// A file of results that is there already.
    #[error("{} exists; --force writes it anew", path.display())]
    ResultsExist {
        /// The file.
        path: PathBuf,
    },
    /// A partial file of results that belongs to another run.
    #[error("{} is another program's, or of another model, task or options; choose another name, or --force begins anew", path.display())]
    OtherResults {
        /// The file.
        path: PathBuf,
    },
    /// A partial file of results that another run writes to.
    #[error("{} is being written by another run; give another name", path.display())]
    ResultsInUse {
        /// The file.
        path: PathBuf,
    },
    /// A line of a file of results.
    #[error("{}, line {line}, is no result of this kind of run: {why}", path.display())]
    Results {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Two runs that asked different questions.
    #[error("these results answer none of the questions, so the two runs cannot be paired")]
    OtherQuestions,
    /// Results of the same questions with other examples or another wording.
    #[error("these results answer the questions under other prompts")]
    OtherPrompts,
    /// Results that were judged by other right answers.
    #[error("these results were judged by another key")]
    OtherKey,
}

/// What gives enough windows: more text, a higher limit, or shorter ones.
fn more_windows(tokens: usize, window: usize, least: usize, is_limited: bool) -> String {
    let longer = match is_limited {
        true => format!("--limit {}", least * window),
        // Two halves, each with a token that is context alone.
        false => format!("a text of {} tokens", 2 * (least * window + 1)),
    };
    match tokens / least {
        0 => longer,
        shorter => format!("{longer}, or --window {shorter},"),
    }
}
