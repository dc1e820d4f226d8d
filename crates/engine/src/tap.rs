//! Between a session's routers and its policy: scores or selections from elsewhere instead of the session's own, and an observer that sees
//! what was chosen. Without either, a step does and allocates nothing more than before.

use crate::Error;
use moce_routing::{
    Phase, RouterScores, ScoreReplay, Selection, SelectionReplay, SessionRouting, TextStart, TraceError, TraceHeader,
    TraceReader,
};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

/// The scores of a trace, as far as a session of so many positions comes to need them in a model of so many MoE layers. The plan of an
/// engine that is opened afterwards counts their memory.
///
/// # Errors
/// The file cannot be read, is no trace, or holds no scores or no tokens.
pub fn read_scores(path: &Path, moe_layers: usize, positions: usize) -> Result<Arc<ScoreReplay>, Error> {
    let read = |reader| ScoreReplay::read(reader, moe_layers, positions);
    read_trace(path)?.and_then(read).map(Arc::new).map_err(|cause| Error::Trace { path: path.to_owned(), cause })
}

/// The selections of a trace. The plan of an engine that is opened afterwards counts their memory.
///
/// # Errors
/// The file cannot be read, or is no trace.
pub fn read_selections(path: &Path) -> Result<Arc<SelectionReplay>, Error> {
    let read = read_trace(path)?.and_then(SelectionReplay::read);
    read.map(Arc::new).map_err(|cause| Error::Trace { path: path.to_owned(), cause })
}

fn read_trace(path: &Path) -> Result<Result<TraceReader<BufReader<File>>, TraceError>, Error> {
    let file = File::open(path).map_err(|cause| Error::TraceFile { path: path.to_owned(), cause })?;
    Ok(TraceReader::new(BufReader::new(file)))
}

/// What is about to be routed.
#[derive(Clone, Copy, Debug)]
pub struct ObservedStep<'a> {
    /// The tokens of the step.
    pub tokens: &'a [u32],
    /// Whether they are given or generated.
    pub phase: Phase,
    /// What the first of them begins, if it is the first of a text.
    pub start: Option<TextStart>,
}

/// Sees every choice of a session. A step runs layer by layer, and token by token within a layer.
pub trait RoutingObserver: Send {
    /// A step begins.
    fn begin(&mut self, step: &ObservedStep<'_>);

    /// A token of the step (by its index) was routed in an MoE layer (by its index among them). `scores` are what the model sorts by, one
    /// per expert, before any policy changed them. This is called while the step runs, for which other sessions of the engine wait: were
    /// it to run one, to make or to drop one, it would wait for itself.
    fn routed(&mut self, layer: usize, token: usize, scores: &[f32], selection: &Selection);

    /// The step is done in all layers. A step that fails ends without this.
    ///
    /// # Errors
    /// What was seen cannot be kept; the step then fails.
    fn end(&mut self) -> Result<(), Error>;

    /// The session is observed no longer.
    ///
    /// # Errors
    /// What was seen cannot be kept.
    fn finish(self: Box<Self>) -> Result<(), Error>;
}

/// What a session's choices come from, and who sees them.
pub(crate) struct RoutingTap {
    source: Source,
    observer: Option<Box<dyn RoutingObserver>>,
    /// What begins with the next token.
    start: Option<TextStart>,
    /// Position of the step's first token in the session.
    first_position: usize,
}

enum Source {
    /// The model's routers and the session's policy.
    Router,
    /// Recorded scores and the session's policy.
    Scores(Arc<ScoreReplay>),
    /// Recorded selections.
    Selections {
        replay: Arc<SelectionReplay>,
        /// Tokens replayed before the step.
        done: usize,
        /// Tokens replayed before the sequence at hand.
        sequence: usize,
        /// The selection at hand.
        chosen: Vec<u32>,
    },
}

impl RoutingTap {
    pub(crate) fn new() -> RoutingTap {
        RoutingTap { source: Source::Router, observer: None, start: Some(TextStart::Sequence), first_position: 0 }
    }

    pub(crate) fn replay_scores(&mut self, replay: Arc<ScoreReplay>) {
        self.source = Source::Scores(replay);
    }

    pub(crate) fn replay_selections(&mut self, replay: Arc<SelectionReplay>) {
        let chosen = Vec::with_capacity(replay.header().experts_per_token);
        self.source = Source::Selections { replay, done: 0, sequence: 0, chosen };
    }

    /// Where selections are re-applied: what was recorded.
    pub(crate) fn replayed(&self) -> Option<&TraceHeader> {
        match &self.source {
            Source::Selections { replay, .. } => Some(replay.header()),
            Source::Router | Source::Scores(_) => None,
        }
    }

    /// Exchanges the observer.
    pub(crate) fn observe(&mut self, observer: Option<Box<dyn RoutingObserver>>) -> Option<Box<dyn RoutingObserver>> {
        std::mem::replace(&mut self.observer, observer)
    }

    /// The next token begins something; a sequence where both are said.
    pub(crate) fn start(&mut self, start: TextStart) {
        if !matches!(self.start, Some(TextStart::Sequence)) {
            self.start = Some(start);
        }
        if start == TextStart::Sequence
            && let Source::Selections { done, sequence, .. } = &mut self.source
        {
            *sequence = *done;
        }
    }

    /// The sequence at hand begins anew with the next token: its selections are re-applied once more.
    pub(crate) fn start_again(&mut self) {
        self.start = Some(TextStart::Sequence);
        if let Source::Selections { done, sequence, .. } = &mut self.source {
            *done = *sequence;
        }
    }

    /// Whether a replay goes on with these tokens; asked before the first step of several.
    pub(crate) fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        let Source::Selections { replay, done, .. } = &self.source else { return Ok(()) };
        let wanted = done + tokens.len();
        if wanted > replay.tokens() {
            return Err(Error::ReplayEnd { recorded: replay.tokens(), wanted });
        }
        for (index, &given) in (*done..).zip(tokens) {
            let start = if index == *done { self.start } else { None };
            if replay.start(index) != start {
                return Err(Error::ReplayStart { index });
            }
            if let Some(recorded) = replay.id(index).filter(|&recorded| recorded != given) {
                return Err(Error::ReplayToken { index, recorded, given });
            }
        }
        Ok(())
    }

    pub(crate) fn begin(&mut self, tokens: &[u32], first_position: usize, phase: Phase) {
        self.first_position = first_position;
        if let Some(observer) = &mut self.observer {
            observer.begin(&ObservedStep { tokens, phase, start: self.start });
        }
    }

    /// Routes a token of the step in an MoE layer. Replayed scores take the place of the router's in `scores`.
    pub(crate) fn route(
        &mut self,
        routing: &mut SessionRouting,
        layer: usize,
        token: usize,
        scores: &mut [f32],
        phase: Phase,
        selection: &mut Selection,
    ) -> Result<(), Error> {
        match &mut self.source {
            Source::Router => routing.route(layer, &*scores, phase, selection)?,
            Source::Scores(replay) => {
                scores.copy_from_slice(replay.scores(layer, self.first_position + token));
                routing.route(layer, &*scores, phase, selection)?;
            }
            Source::Selections { replay, done, chosen, .. } => {
                chosen.clear();
                chosen.extend(replay.selection(*done + token, layer));
                routing.replay(layer, chosen, Some(RouterScores::from(&*scores)), phase, selection)?;
            }
        }
        Ok(())
    }

    /// Shows the observer what was chosen. It may panic, so this comes when all that follows from the choice has been noted.
    pub(crate) fn routed(&mut self, layer: usize, token: usize, scores: &[f32], selection: &Selection) {
        if let Some(observer) = &mut self.observer {
            observer.routed(layer, token, scores, selection);
        }
    }

    pub(crate) fn end(&mut self, tokens: usize) -> Result<(), Error> {
        self.start = None;
        if let Source::Selections { done, .. } = &mut self.source {
            *done += tokens;
        }
        self.observer.as_mut().map_or(Ok(()), |observer| observer.end())
    }
}
