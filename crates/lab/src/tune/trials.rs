//! What has been run, in a file too, so that a search that was broken off goes on.

use super::TuneOptions;
use crate::partial::{Header, PartialFile};
use crate::{Error, PerplexityReport, Study};
use moce_engine::Engine;
use moce_engine::routing::Policy;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A part of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Part {
    /// A few windows of the first half, beside original routing: what leaning costs layer by layer.
    Beginning,
    /// Where parameters are chosen.
    FirstHalf,
    /// Where they are accepted or refused.
    SecondHalf,
}

/// What all trials of a file have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct TrialsHeader {
    moce_tune: u32,
    study: Study,
    eviction: String,
}

impl Header for TrialsHeader {
    const KIND: &'static str = "moce_tune";
    const VERSION: u32 = 1;
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    part: Part,
    /// As it was asked for: parameters that were left out still are.
    policy: String,
    capacity: Vec<usize>,
    report: PerplexityReport,
}

/// All that a search has run. Nothing runs twice.
#[derive(Default)]
pub struct Trials {
    known: Vec<Run>,
    file: Option<PartialFile<TrialsHeader, Run>>,
}

impl Trials {
    /// Kept in `PROFILE.partial` until [`Trials::discard`]; what that holds of the same search already is known. `force`: it is begun anew,
    /// and `profile` may exist.
    ///
    /// # Errors
    /// The text or the options are none to tune with, the profile exists alone and `force` is not given, the partial file belongs to another
    /// search or is being written by another run, or it cannot be written.
    pub fn beside(
        profile: &Path,
        engine: &Engine,
        text: &str,
        options: &TuneOptions,
        force: bool,
    ) -> Result<Trials, Error> {
        super::prepare(engine, text, options)?;
        let header = TrialsHeader {
            moce_tune: TrialsHeader::VERSION,
            study: Study::new(engine, text, &options.perplexity, &options.base),
            eviction: options.base.eviction.to_string(),
        };
        let (file, known) = PartialFile::open(profile, &header, force)?;
        Ok(Trials { known, file: Some(file) })
    }

    /// Deletes the file.
    ///
    /// # Errors
    /// The system refuses.
    pub fn discard(self) -> Result<(), Error> {
        self.file.map_or(Ok(()), PartialFile::discard)
    }

    pub(super) fn get(&self, part: Part, policy: &Policy, capacity: &[usize]) -> Option<&PerplexityReport> {
        let policy = policy.to_string();
        // A line that was meddled with is none.
        let is_whole = |run: &Run| run.report.per_layer.len() == capacity.len();
        let is_it = |run: &&Run| run.part == part && run.policy == policy && run.capacity == capacity && is_whole(run);
        self.known.iter().find(is_it).map(|run| &run.report)
    }

    pub(super) fn add(
        &mut self,
        part: Part,
        policy: &Policy,
        capacity: &[usize],
        report: PerplexityReport,
    ) -> Result<(), Error> {
        let run = Run { part, policy: policy.to_string(), capacity: capacity.to_vec(), report };
        if let Some(file) = &mut self.file {
            file.append(&run)?;
        }
        self.known.push(run);
        Ok(())
    }
}
