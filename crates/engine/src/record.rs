//! Writes a trace of a session while it runs: what was chosen and, if wanted, what the routers said (`docs/formats/trace.md`).
//!
//! A step runs layer by layer and a trace holds token by token, so the tokens of a step are kept until it is done.

use crate::tap::{ObservedStep, RoutingObserver};
use crate::{Error, NewFile, Session};
use moce_routing::{
    Selection, Start, StoredScores, TraceError, TraceHeader, TraceLayer, TraceModel, TraceToken, TraceWriter,
};
use std::path::{Path, PathBuf};

/// Records a session: give it to [`Session::observe`].
pub struct RoutingRecorder {
    path: PathBuf,
    writer: TraceWriter<NewFile>,
    /// The tokens of the step; more than it has where an earlier one had more.
    tokens: Vec<TraceToken>,
    /// Tokens of the step.
    count: usize,
}

impl RoutingRecorder {
    /// Begins a trace of what `session` does from now on; without `scores` selections alone. `overwrite`: a file of that name gives way
    /// when the trace is whole.
    ///
    /// # Errors
    /// The model has no experts, or the file exists already or cannot be made.
    pub fn create(
        path: &Path,
        session: &Session,
        scores: Option<StoredScores>,
        overwrite: bool,
    ) -> Result<RoutingRecorder, Error> {
        let file = NewFile::create(path, overwrite).map_err(|cause| file_error(path, cause))?;
        let header = header(session, scores);
        let writer = TraceWriter::new(file, header).map_err(|cause| trace_error(path, cause))?;
        Ok(RoutingRecorder { path: path.to_owned(), writer, tokens: Vec::new(), count: 0 })
    }
}

impl RoutingObserver for RoutingRecorder {
    fn begin(&mut self, step: &ObservedStep<'_>) {
        self.count = step.tokens.len();
        let header = self.writer.header();
        while self.tokens.len() < self.count {
            self.tokens.push(TraceToken::new(header));
        }
        for (index, (token, &id)) in self.tokens.iter_mut().zip(step.tokens).enumerate() {
            token.id = Some(id);
            token.phase = step.phase;
            token.start = step.start.filter(|_| index == 0);
        }
    }

    fn routed(&mut self, layer: usize, token: usize, scores: &[f32], selection: &Selection) {
        self.tokens[token].set_layer(layer, selection.ranked(), scores);
    }

    fn end(&mut self) -> Result<(), Error> {
        let mut tokens = self.tokens[..self.count].iter();
        tokens.try_for_each(|token| self.writer.write(token)).map_err(|cause| trace_error(&self.path, cause))
    }

    fn finish(self: Box<Self>) -> Result<(), Error> {
        let RoutingRecorder { path, writer, .. } = *self;
        let file = writer.finish().map_err(|cause| trace_error(&path, cause))?;
        file.finish().map_err(|cause| file_error(&path, cause))
    }
}

fn file_error(path: &Path, cause: std::io::Error) -> Error {
    Error::TraceFile { path: path.to_owned(), cause }
}

fn trace_error(path: &Path, cause: TraceError) -> Error {
    Error::Trace { path: path.to_owned(), cause }
}

fn header(session: &Session, scores: Option<StoredScores>) -> TraceHeader {
    let (engine, routing) = (session.engine(), session.routing());
    let h = engine.hyperparameters();
    let (experts, experts_per_token) = h.experts.map_or((0, 0), |experts| (experts.count, experts.per_token));
    let options = routing.options();
    // What is cached is no start of the options' where the session was warmed, or has begun already.
    let starts_so = |layer| options.start.experts(layer, routing.shape(layer)).into_iter().eq(routing.cached(layer));
    let start = match (0..routing.layer_count()).all(starts_so) {
        true => options.start.clone(),
        false => Start::Given((0..routing.layer_count()).map(|layer| routing.cached(layer).collect()).collect()),
    };
    // What is chosen is what was recorded, whatever the session's own policy would choose.
    let (policy, prompt_policy) = match session.replayed() {
        Some(recorded) => (recorded.policy.clone(), recorded.prompt_policy.clone()),
        None => (options.policy.to_string(), options.prompt_policy.to_string()),
    };
    let layer = |(layer, &expert_bytes)| TraceLayer { expert_bytes, capacity: routing.shape(layer).capacity };
    TraceHeader {
        model: TraceModel {
            name: engine.path().file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            architecture: h.architecture.clone(),
            fingerprint: engine.identity().fingerprint(),
            bytes: engine.file_bytes(),
        },
        layers: engine.expert_bytes().iter().enumerate().map(layer).collect(),
        experts,
        experts_per_token,
        scores,
        policy,
        prompt_policy,
        eviction: options.eviction.to_string(),
        touch: options.touch,
        start,
    }
}
