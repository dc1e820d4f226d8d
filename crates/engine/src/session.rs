//! A session: one growing KV cache with its routing state, and the logits of its last token.

use crate::engine::{Seat, StepRequest};
use crate::layers::LogitsWanted;
use crate::tap::{RoutingObserver, RoutingTap};
use crate::{CacheState, Engine, Error};
use moce_kernels::KvCache;
use moce_routing::{
    EvictionState, Phase, Policy, RoutingOptions, ScoreReplay, SelectionReplay, SessionRouting, TextStart, TraceHeader,
};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A text in progress. Tokens go in, logits for the next token come out.
pub struct Session {
    kv: KvCache,
    routing: SessionRouting,
    tap: RoutingTap,
    position: usize,
    /// Whether a step failed half-way, so that routing state and position no longer agree.
    failed: bool,
    logits: Vec<f32>,
    branches: Branches,
    /// Last: given up when the KV cache is gone.
    seat: Seat,
}

/// A place in a session's text to go back to: the policy's state, while keys and values stay where they are.
#[derive(Clone, Debug)]
pub struct Snapshot {
    position: usize,
    branch: u64,
    failed: bool,
    routing: SessionRouting,
    logits: Vec<f32>,
}

impl Session {
    /// An empty session with the engine's routing.
    ///
    /// # Errors
    /// As many sessions are open as [`EngineOptions::sessions`](crate::EngineOptions::sessions) says, or there is no memory for the KV cache.
    pub fn new(engine: &Arc<Engine>) -> Result<Session, Error> {
        Session::with_routing(engine, engine.routing(), &engine.plan().capacity)
    }

    /// An empty session with a routing of its own and so many experts logically cached in each MoE layer, whatever is resident: what is
    /// cached but absent is read when it is chosen.
    ///
    /// # Errors
    /// As [`Session::new`], or the options or the number of capacities do not fit the model.
    pub fn with_routing(engine: &Arc<Engine>, routing: &RoutingOptions, capacity: &[usize]) -> Result<Session, Error> {
        let h = engine.hyperparameters();
        let seat = engine.take_seat()?;
        let routing = engine.new_routing(routing, capacity)?;
        let session = Session {
            kv: KvCache::new(engine.kv_shape(), h.layers)?,
            routing,
            tap: RoutingTap::new(),
            position: 0,
            failed: false,
            logits: vec![0.0; h.vocabulary],
            branches: Branches::new(),
            seat,
        };
        engine.hold(&session.routing);
        Ok(session)
    }

    /// The engine that runs this session.
    pub fn engine(&self) -> &Arc<Engine> {
        self.seat.engine()
    }

    /// Tokens seen so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Tokens that still fit the context.
    pub fn remaining(&self) -> usize {
        self.engine().context() - self.position
    }

    /// Logits for the next token `[vocabulary]`, by id; zeros before the first token of a text. They are finite: a step that would
    /// give others fails and leaves those from before it.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Which experts were chosen and cached so far.
    pub fn routing(&self) -> &SessionRouting {
        &self.routing
    }

    /// Which experts are cached, and the state of the policy: to be taken up by a later session.
    ///
    /// # Errors
    /// A step failed half-way, so that some layers have seen tokens that others have not.
    pub fn cache_state(&self) -> Result<CacheState, Error> {
        if self.failed {
            return Err(Error::SessionFailed);
        }
        let layers = (0..self.routing.layer_count()).map(|layer| self.routing.state(layer)).collect();
        Ok(CacheState::new(self.engine().identity(), layers))
    }

    /// Takes up a saved state. Its experts are read in idle time; what is chosen before it has come is read at once. Where fewer
    /// experts fit than were saved, the most recent stay; under s3fifo the sizes must agree.
    ///
    /// # Errors
    /// The session has begun, or the state is of another model or another eviction, or under s3fifo of another capacity.
    pub fn warm_start(&mut self, state: &CacheState) -> Result<(), Error> {
        if self.position > 0 {
            return Err(Error::CacheStateLate);
        }
        state.check(self.engine().identity(), self.routing.layer_count())?;
        let mut warm = self.routing.clone();
        for (layer, saved) in state.layers.iter().enumerate() {
            let mut saved = saved.clone();
            let capacity = warm.shape(layer).capacity;
            // s3fifo's queues hold the cached experts; cutting them is its own business, so there the sizes must agree.
            if !matches!(saved.eviction, EvictionState::S3Fifo { .. }) {
                saved.cached.drain(..saved.cached.len().saturating_sub(capacity));
            }
            warm.restore(layer, &saved)?;
        }
        self.engine().end_routing(&self.routing);
        self.routing = warm;
        self.engine().hold(&self.routing);
        self.engine().warm_up(&self.routing)
    }

    /// Another policy for the generated tokens from now on; caches, range and counts stay.
    ///
    /// # Errors
    /// Its parameters do not fit the model.
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), Error> {
        let prompt_policy = self.routing.options().prompt_policy.clone();
        Ok(self.routing.set_policies(policy, prompt_policy)?)
    }

    /// Starts a new text with what policies have learned: caches are emptied (or as they are at a start), the running range of the scores
    /// and all counts stay. They would stay uneven after a failed step, so a session that failed remains so.
    pub fn restart(&mut self) {
        self.engine().end_routing(&self.routing);
        self.routing.restart_caches();
        self.engine().hold(&self.routing);
        self.tap.start(TextStart::Window);
        self.position = 0;
        self.logits.fill(0.0);
        self.branches.begin(0);
    }

    /// Forgets everything: the next token is the first of a text. Where selections are re-applied it is the recorded run's next text; after
    /// a failed step it is once more the one that began when the session was new, or cleared before.
    ///
    /// # Errors
    /// The routing state cannot be made anew.
    pub fn clear(&mut self) -> Result<(), Error> {
        self.position = 0;
        self.logits.fill(0.0);
        self.branches.begin(0);
        let capacity: Vec<usize> = (0..self.routing.layer_count()).map(|l| self.routing.shape(l).capacity).collect();
        let fresh = self.engine().new_routing(self.routing.options(), &capacity)?;
        self.engine().end_routing(&self.routing);
        self.routing = fresh;
        self.engine().hold(&self.routing);
        match self.failed {
            true => self.tap.start_again(),
            false => self.tap.start(TextStart::Sequence),
        }
        self.failed = false;
        Ok(())
    }

    /// From now on the scores of a trace take the place of the routers' own: a token at position t of its text takes those of the trace's
    /// token t (`docs/formats/trace.md` says which where layers or lengths differ). For speed and hit rates: the text means nothing.
    ///
    /// # Errors
    /// N or K of the trace are not the model's, or the replay was read for fewer layers or positions than the session has.
    pub fn replay_scores(&mut self, replay: Arc<ScoreReplay>) -> Result<(), Error> {
        let (experts, per_token) = self.engine().hyperparameters().experts.map_or((0, 0), |e| (e.count, e.per_token));
        replay.check(experts, per_token)?;
        let (layers, context) = (self.routing.layer_count(), self.engine().context());
        if !replay.covers(layers, context) {
            return Err(Error::ReplayCover { layers, context });
        }
        self.tap.replay_scores(replay);
        Ok(())
    }

    /// From now on the selections of a trace are re-applied, token after token as they are run, whatever the session's policy says: a
    /// recorded run comes out the same whatever its timing was. Text that was not recorded is refused when it is run.
    ///
    /// # Errors
    /// The trace is of another model.
    pub fn replay_selections(&mut self, replay: Arc<SelectionReplay>) -> Result<(), Error> {
        let (header, opened) = (replay.header(), self.engine().identity().fingerprint());
        if header.model.fingerprint != opened {
            return Err(Error::ReplayModel { recorded: header.model.fingerprint, opened });
        }
        let (experts, per_token) = self.engine().hyperparameters().experts.map_or((0, 0), |e| (e.count, e.per_token));
        let recorded = (header.layers.len(), header.experts, header.experts_per_token);
        if recorded != (self.routing.layer_count(), experts, per_token) {
            return Err(Error::ReplayModel { recorded: header.model.fingerprint, opened });
        }
        self.tap.replay_selections(replay);
        Ok(())
    }

    /// Where selections are re-applied: what was recorded.
    pub(crate) fn replayed(&self) -> Option<&TraceHeader> {
        self.tap.replayed()
    }

    /// From now on `observer` sees every choice. One that was there before is given back.
    pub fn observe(&mut self, observer: Box<dyn RoutingObserver>) -> Option<Box<dyn RoutingObserver>> {
        self.tap.observe(Some(observer))
    }

    /// Gives back the observer, if there is one.
    pub fn stop_observing(&mut self) -> Option<Box<dyn RoutingObserver>> {
        self.tap.observe(None)
    }

    /// The place where the session is now, to come back to after other tokens have followed it. That of a failed session is failed, too.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            position: self.position,
            branch: self.branches.at(self.position),
            failed: self.failed,
            routing: self.routing.clone(),
            logits: self.logits.clone(),
        }
    }

    /// Goes back: tokens, policy state (recency, the eviction's data, the running range), counts and logits are as they were at the
    /// snapshot. The policies stay the ones that are set now. An observer is not told, and selections that are re-applied do not go back.
    ///
    /// # Errors
    /// The snapshot is of another session, or its tokens have been overwritten since by others.
    pub fn go_back(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        if snapshot.position > self.position || self.branches.at(snapshot.position) != snapshot.branch {
            return Err(Error::SnapshotGone { position: snapshot.position });
        }
        let RoutingOptions { policy, prompt_policy, .. } = self.routing.options().clone();
        self.engine().end_routing(&self.routing);
        self.routing.clone_from(&snapshot.routing);
        self.engine().hold(&self.routing);
        self.routing.set_policies(policy, prompt_policy)?;
        self.position = snapshot.position;
        self.logits.copy_from_slice(&snapshot.logits);
        self.branches.begin(snapshot.position);
        self.failed = snapshot.failed;
        Ok(())
    }

    /// Runs prompt tokens, in chunks, and leaves the logits of the last.
    ///
    /// # Errors
    /// There are no tokens, one is outside the vocabulary, they do not fit the context, or a step fails. After a failed step the session
    /// takes no tokens until it is cleared, or goes back to a snapshot from before.
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<(), Error> {
        let flow = self.prompt_while(tokens, &mut |_, _| ControlFlow::Continue(()))?;
        debug_assert!(flow.is_continue());
        Ok(())
    }

    /// As [`Session::prompt`], asking after each chunk but the last whether to go on, with the number of tokens that are left. After a
    /// break the session holds the tokens that were run, and the logits are as before.
    ///
    /// # Errors
    /// As [`Session::prompt`].
    pub fn prompt_while(
        &mut self,
        tokens: &[u32],
        go_on: &mut dyn FnMut(&Session, usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        self.check(tokens)?;
        self.engine().check_files()?;
        let mut left = tokens.len();
        for tokens in tokens.chunks(self.engine().chunk()) {
            left -= tokens.len();
            let wanted = if left == 0 { LogitsWanted::Last } else { LogitsWanted::None };
            self.step(tokens, Phase::Prompt, wanted)?;
            if left > 0 && go_on(self, left).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Runs one generated token.
    ///
    /// # Errors
    /// As [`Session::prompt`].
    pub fn decode(&mut self, token: u32) -> Result<(), Error> {
        self.check(&[token])?;
        self.step(&[token], Phase::Generation, LogitsWanted::Last)
    }

    /// Runs tokens as a prompt and hands out the logits after each of them, by the token's index in `tokens`. Those of the last stay.
    ///
    /// `receive` is called while the step runs, for which other sessions of the engine wait: were it to run one, to make or to drop one, it
    /// would wait for itself.
    ///
    /// # Errors
    /// As [`Session::prompt`].
    pub fn score(&mut self, tokens: &[u32], receive: &mut dyn FnMut(usize, &[f32])) -> Result<(), Error> {
        self.check(tokens)?;
        self.engine().check_files()?;
        let chunk = self.engine().chunk();
        for (index, tokens) in tokens.chunks(chunk).enumerate() {
            let mut receive = |token: usize, logits: &[f32]| receive(index * chunk + token, logits);
            self.step(tokens, Phase::Prompt, LogitsWanted::Each(&mut receive))?;
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        if self.failed {
            return Err(Error::SessionFailed);
        }
        if tokens.is_empty() {
            return Err(Error::Empty);
        }
        let vocabulary = self.logits.len();
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::TokenOutOfRange { token, vocabulary });
        }
        if tokens.len() > self.remaining() {
            let (context, model) = (self.engine().context(), self.engine().hyperparameters().context);
            return Err(Error::ContextFull { wanted: self.position + tokens.len(), context, model });
        }
        self.tap.check(tokens)
    }

    fn step(&mut self, tokens: &[u32], phase: Phase, mut logits: LogitsWanted<'_>) -> Result<(), Error> {
        self.failed = true;
        self.tap.begin(tokens, self.position, phase);
        self.seat.engine().step(StepRequest {
            kv: &mut self.kv,
            routing: &mut self.routing,
            tap: &mut self.tap,
            tokens,
            first_position: self.position,
            phase,
            logits: logits.reborrow(),
            last_logits: &mut self.logits,
        })?;
        self.tap.end(tokens.len())?;
        self.position += tokens.len();
        self.failed = false;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.engine().end_routing(&self.routing);
    }
}

/// Which run of tokens each position belongs to: going back and on overwrites positions, and what remembers the old ones must know.
struct Branches {
    /// The session's own number.
    session: u64,
    /// Where each run begins and its number, ascending.
    begun: Vec<(usize, u64)>,
}

impl Branches {
    fn new() -> Branches {
        Branches { session: Branches::number(), begun: vec![(0, Branches::number())] }
    }

    /// Unique in the process.
    fn number() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// The run that the token before `position` belongs to; the session's number at the beginning, which nothing overwrites.
    fn at(&self, position: usize) -> u64 {
        self.begun.iter().rev().find(|&&(start, _)| start < position).map_or(self.session, |&(_, number)| number)
    }

    /// A new run begins at `position`.
    fn begin(&mut self, position: usize) {
        self.begun.retain(|&(start, _)| start < position);
        self.begun.push((position, Branches::number()));
    }
}
