//! The folder of a sweep: a result file for each cell, and what is written from all of them.

use super::cell::SweepCell;
use super::summary::{CellSummary, summarise};
use super::{SweepOptions, report};
use crate::{Error, PerplexityReport, TimingModel, files};
use moce_engine::Engine;
use moce_engine::routing::Start;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CELLS: &str = "cells";

/// What all cells of a sweep have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Study {
    /// The model's file name.
    pub model: String,
    /// Its identity.
    pub model_identity: String,
    /// MoE layers.
    pub layers: usize,
    /// N
    pub experts: usize,
    /// K
    pub experts_per_token: usize,
    /// Bytes of one expert of each MoE layer.
    pub expert_bytes: Vec<u64>,
    /// Bytes of text.
    pub text_bytes: usize,
    /// FNV-1a of the text.
    pub text_hash: String,
    /// Tokens predicted a window.
    pub window: usize,
    /// Most tokens scored.
    pub limit: Option<usize>,
    /// Whether windows begin with BOS.
    pub bos: bool,
    /// Whether original routing runs along.
    pub kl: bool,
    /// How keys and values are kept.
    pub kv: String,
    /// In which order a token's experts become most recent.
    pub touch: String,
    /// What is cached where a window starts.
    pub start: String,
}

impl Study {
    pub(super) fn new(engine: &Engine, text: &str, options: &SweepOptions) -> Study {
        let SweepOptions { perplexity, grid, .. } = options;
        let plan = engine.plan();
        Study {
            model: engine.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            model_identity: engine.identity().to_string(),
            layers: plan.experts.len(),
            experts: plan.experts.iter().copied().max().unwrap_or(0),
            experts_per_token: plan.experts_per_token,
            expert_bytes: plan.expert_bytes.clone(),
            text_bytes: text.len(),
            text_hash: format!("{:016x}", fnv_1a(text.as_bytes())),
            window: perplexity.window,
            limit: perplexity.limit,
            bos: perplexity.bos,
            kl: perplexity.kl,
            kv: plan.kv_type.to_string(),
            touch: grid.base.touch.to_string(),
            start: match &grid.base.start {
                Start::Given(layers) => format!("given:{:016x}", fnv_1a(format!("{layers:?}").as_bytes())),
                start => start.to_string(),
            },
        }
    }
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The result of a cell, as its file holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CellResult {
    /// What it belongs to.
    pub study: Study,
    /// The cell's name.
    pub name: String,
    /// The capacity as it was asked for.
    pub capacity: String,
    /// What was measured.
    pub report: PerplexityReport,
}

/// A folder that takes the results of one study.
pub(super) struct Store {
    folder: PathBuf,
    study: Study,
}

impl Store {
    /// Opens a folder, or makes it.
    pub(super) fn open(folder: &Path, study: Study) -> Result<Store, Error> {
        let cells = folder.join(CELLS);
        std::fs::create_dir_all(&cells).map_err(|cause| Error::File { path: cells, cause })?;
        let store = Store { folder: folder.to_owned(), study };
        store.results()?;
        Ok(store)
    }

    /// Whether a cell has been finished.
    pub(super) fn has(&self, cell: &SweepCell) -> bool {
        self.path(&cell.name).exists()
    }

    pub(super) fn keep(&self, cell: &SweepCell, report: PerplexityReport) -> Result<(), Error> {
        let (name, capacity) = (cell.name.clone(), cell.capacity.clone());
        self.write(&CellResult { study: self.study.clone(), name, capacity, report })
    }

    fn write(&self, result: &CellResult) -> Result<(), Error> {
        files::write_json(&self.path(&result.name), result)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(CELLS).join(format!("{name}.json"))
    }

    /// All results in the folder, by name.
    fn results(&self) -> Result<Vec<CellResult>, Error> {
        let results = read_results(&self.folder)?;
        match results.iter().find(|result| result.study != self.study) {
            Some(other) => Err(Error::OtherStudy { path: self.path(&other.name) }),
            None => Ok(results),
        }
    }

    /// Writes results, plots and report of all cells in the folder.
    pub(super) fn publish(&self, timing: Option<TimingModel>) -> Result<Vec<CellSummary>, Error> {
        let results = self.results()?;
        let summaries = summarise(&self.study, &results, timing);
        files::write_json_pretty(&self.folder.join("results.json"), &summaries)?;
        #[cfg(feature = "parquet")]
        files::write(&self.folder.join("results.parquet"), &super::parquet::table(&summaries)?)?;
        for (name, contents) in report::files(&self.study, &results, &summaries) {
            files::write(&self.folder.join(name), contents.as_bytes())?;
        }
        Ok(summaries)
    }
}

/// Joins the folders of a sweep's shards in `output`, which may be one of them, and writes the report of the whole.
///
/// # Errors
/// The folders hold nothing, or different studies; a file cannot be read or written.
pub fn merge(folders: &[PathBuf], output: &Path, timing: Option<TimingModel>) -> Result<Vec<CellSummary>, Error> {
    let mut all = BTreeMap::new();
    for folder in folders {
        for result in read_results(folder)? {
            all.insert(result.name.clone(), result);
        }
    }
    let Some(first) = all.values().next() else { return Err(Error::NoResults { path: output.to_owned() }) };
    let store = Store::open(output, first.study.clone())?;
    for result in all.values() {
        if result.study != store.study {
            return Err(Error::OtherStudy { path: store.path(&result.name) });
        }
        store.write(result)?;
    }
    store.publish(timing)
}

fn read_results(folder: &Path) -> Result<Vec<CellResult>, Error> {
    let cells = folder.join(CELLS);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| Error::File { path, cause }
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&cells).map_err(failed(&cells))? {
        paths.push(entry.map_err(failed(&cells))?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).map_err(failed(path))?;
        serde_json::from_slice(&bytes).map_err(|error| failed(path)(std::io::Error::other(error)))
    };
    paths.iter().map(read).collect()
}
