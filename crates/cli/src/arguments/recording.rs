//! Writing down which experts a run chose, and choosing them again.

use crate::report;
use clap::{Args, ValueHint};
use moce_engine::routing::SelectionReplay;
use moce_engine::{RoutingRecorder, Session, read_selections};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Args)]
#[command(next_help_heading = "Recorded routing")]
pub(crate) struct Recording {
    /// Write the choice of experts to this file (a trace without scores)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) record_routing: Option<PathBuf>,
    /// Choose experts exactly as in this record of the same model and text, instead of --routing
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["routing", "routing_prompt"])]
    pub(crate) replay_routing: Option<PathBuf>,
}

impl Recording {
    /// What is to be replayed. Read before the engine is opened, so that the memory plan counts it.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Arc<SelectionReplay>>> {
        Ok(self.replay_routing.as_deref().map(read_selections).transpose()?)
    }

    /// Sets a session that has not begun to record or replay, as asked. Gives the policies that are replayed, those of prompt tokens in brackets
    /// if they are others.
    pub(crate) fn attach(
        &self,
        replay: Option<Arc<SelectionReplay>>,
        session: &mut Session,
        quiet: bool,
    ) -> anyhow::Result<Option<String>> {
        let mut replayed = None;
        if let Some((replay, path)) = replay.zip(self.replay_routing.as_ref()) {
            let policy = report::routing(&replay.header().policy, &replay.header().prompt_policy);
            if !quiet {
                let (path, tokens) = (path.display(), replay.tokens());
                report::say(format_args!("routing: as recorded in {path} ({tokens} tokens, {policy})"));
            }
            replayed = Some(policy);
            session.replay_selections(replay)?;
        }
        if let Some(path) = &self.record_routing {
            session.observe(Box::new(RoutingRecorder::create(path, session, None, false)?));
        }
        Ok(replayed)
    }

    /// Completes the record, if there is one: without this no file appears.
    pub(crate) fn finish(&self, session: &mut Session) -> anyhow::Result<()> {
        match session.stop_observing() {
            Some(observer) => Ok(observer.finish()?),
            None => Ok(()),
        }
    }
}
