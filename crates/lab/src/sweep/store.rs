//! The folder of a sweep: a result file for each cell (docs/formats/sweep.md), and what is written from all of them.

use super::cell::SweepCell;
use super::report;
use super::summary::{CellSummary, summarise};
use crate::{Error, PerplexityReport, Study, TimingModel, files};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const CELLS: &str = "cells";
/// Files that every sweep makes from its cells, beside plots that are called after these.
const PUBLISHED: [&str; 4] = ["results.json", "results.parquet", "report.html", "usage.svg"];
/// The version of the format of a cell's file.
const VERSION: u32 = 1;

/// The result of a cell, as its file holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CellResult {
    /// The version of the format.
    pub moce_sweep: u32,
    /// What it belongs to.
    pub study: Study,
    /// The cell's name.
    pub name: String,
    /// The capacity as it was asked for.
    pub capacity: String,
    /// What was measured.
    pub report: PerplexityReport,
}

impl CellResult {
    /// Whether it is the result of this cell, whose policy has its defaults written out: both may have been written in several ways.
    pub(super) fn is_of(&self, cell: &SweepCell) -> bool {
        let (policy, eviction) = (cell.routing.policy.to_string(), cell.routing.eviction.to_string());
        self.is_at(&cell.capacities, &policy, &eviction)
    }

    fn is_beside(&self, other: &CellResult) -> bool {
        self.is_at(&other.report.capacity, &other.policy(), &other.report.eviction)
    }

    fn is_at(&self, capacities: &[usize], policy: &str, eviction: &str) -> bool {
        self.report.capacity == capacities && self.policy() == policy && self.report.eviction == eviction
    }

    fn policy(&self) -> String {
        self.study.resolved(&self.report.routing)
    }
}

/// A folder that takes the results of one study.
pub(super) struct Store {
    folder: PathBuf,
    study: Study,
}

impl Store {
    /// Opens a folder, or makes it. What another program wrote there is not written over.
    pub(super) fn open(folder: &Path, study: Study) -> Result<Store, Error> {
        let cells = folder.join(CELLS);
        let mut published = PUBLISHED.iter().map(|name| folder.join(name));
        if let Some(path) = published.find(|path| !cells.exists() && path.exists()) {
            return Err(Error::ForeignFolder { path });
        }
        std::fs::create_dir_all(&cells).map_err(|cause| Error::File { path: cells, cause })?;
        let store = Store { folder: folder.to_owned(), study };
        store.results()?;
        Ok(store)
    }

    /// The results that are there. Refuses those that were measured with something else than the cells name now: a name holds the
    /// path of a file of capacities, not what stands in it.
    pub(super) fn finished(&self, cells: &[SweepCell]) -> Result<Vec<CellResult>, Error> {
        let results = self.results()?;
        let is_other = |result: &&CellResult| {
            let other_capacities = |cell: &SweepCell| result.report.capacity != cell.capacities;
            let is_other = |cell: &SweepCell| match result.name == cell.name {
                true => !result.is_of(cell),
                false => result.capacity == cell.capacity && other_capacities(cell),
            };
            cells.iter().any(is_other)
        };
        match results.iter().find(is_other) {
            Some(other) => Err(Error::OtherCell { path: self.path(&other.name) }),
            None => Ok(results),
        }
    }

    pub(super) fn keep(&self, cell: &SweepCell, report: PerplexityReport) -> Result<(), Error> {
        let (name, capacity) = (cell.name.clone(), cell.capacity.clone());
        self.write(&CellResult { moce_sweep: VERSION, study: self.study.clone(), name, capacity, report })
    }

    fn write(&self, result: &CellResult) -> Result<(), Error> {
        files::write_json(&self.path(&result.name), result)
    }

    fn path(&self, name: &str) -> PathBuf {
        cell_path(&self.folder, name)
    }

    /// All results in the folder, by name.
    fn results(&self) -> Result<Vec<CellResult>, Error> {
        let results = read_results(&self.folder)?;
        match results.iter().find(|result| !result.study.is_same(&self.study)) {
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
/// The folders hold nothing, different studies, or different results of one cell; a file cannot be read or written. Nothing has been
/// written then, unless writing fails.
pub fn merge(folders: &[PathBuf], output: &Path, timing: Option<TimingModel>) -> Result<Vec<CellSummary>, Error> {
    let mut all: BTreeMap<String, (PathBuf, CellResult)> = BTreeMap::new();
    let there = output.join(CELLS).exists().then_some(output);
    // Cells of the output keep their names, for their files stay.
    for folder in there.into_iter().chain(folders.iter().map(PathBuf::as_path)) {
        for result in read_results(folder)? {
            let path = cell_path(folder, &result.name);
            if all.values().next().is_some_and(|(_, first)| !first.study.is_same(&result.study)) {
                return Err(Error::OtherStudy { path });
            }
            let is_same = |other: &CellResult| other.name == result.name || other.is_beside(&result);
            let is_other = |other: &CellResult| match is_same(other) {
                true => other.report != result.report,
                false => other.capacity == result.capacity && other.report.capacity != result.report.capacity,
            };
            if let Some((one, _)) = all.values().find(|(_, other)| is_other(other)) {
                return Err(Error::TwoResults { one: one.clone(), other: path });
            }
            if !all.values().any(|(_, other)| is_same(other)) {
                all.insert(result.name.clone(), (path, result));
            }
        }
    }
    let Some((_, first)) = all.values().next() else { return Err(Error::NoResults { path: output.to_owned() }) };
    let store = Store::open(output, first.study.clone())?;
    all.values().try_for_each(|(_, result)| store.write(result))?;
    store.publish(timing)
}

fn cell_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(CELLS).join(format!("{name}.json"))
}

fn read_results(folder: &Path) -> Result<Vec<CellResult>, Error> {
    let cells = folder.join(CELLS);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |cause| Error::File { path, cause }
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    let no_sweep = |cause: std::io::Error| match cause.kind() {
        ErrorKind::NotFound => std::io::Error::other("no such folder, so no sweep has written here"),
        _ => cause,
    };
    for entry in std::fs::read_dir(&cells).map_err(no_sweep).map_err(failed(&cells))? {
        paths.push(entry.map_err(failed(&cells))?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.iter().map(|path| parse(path, &std::fs::read(path).map_err(failed(path))?).map_err(failed(path))).collect()
}

/// The result in the file of this name: a copy under another name is none, and would count twice.
fn parse(path: &Path, cell: &[u8]) -> std::io::Result<CellResult> {
    #[derive(Deserialize)]
    struct Version {
        moce_sweep: u32,
    }
    let Version { moce_sweep } = serde_json::from_slice(cell)?;
    if moce_sweep != VERSION {
        let why = format!("version {moce_sweep} of a sweep's cell, where {VERSION} is known");
        return Err(std::io::Error::other(why));
    }
    let result: CellResult = serde_json::from_slice(cell)?;
    if path.file_stem().is_none_or(|stem| stem != &*result.name) {
        return Err(std::io::Error::other(format!("the result of cell {}, under another name", result.name)));
    }
    if result.report.per_layer.len() != result.study.layers {
        let layers = result.report.per_layer.len();
        return Err(std::io::Error::other(format!("{layers} layers where the model has {}", result.study.layers)));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_engine::routing::RoutingOptions;
    use serde_json::json;

    /// Of the eviction that stands in the name, else is called as it.
    fn result(name: &str, nll: f64, capacity: [usize; 2]) -> CellResult {
        let eviction = name.split('_').nth(1).unwrap_or(name);
        let study = json!({
            "model": "m.gguf", "model_identity": "0123456789abcdef", "layers": 0, "experts": 60, "experts_per_token": 4,
            "expert_bytes": [1, 1], "text_bytes": 9, "text_hash": "0", "window": 2, "limit": null, "bos": false, "kl": false,
            "kv": "f16", "touch": "strong-first", "start": "empty",
        });
        let report = json!({
            "tokens": 2, "words": 0, "nll": nll, "window_nll": [nll], "perplexity": 2.0, "word_perplexity": null,
            "miss_rate": 0.5, "misses_per_token": 1.0, "lifetime_mean": 1.0, "lifetime_std": 0.0, "routing": "original",
            "eviction": eviction, "capacity": capacity, "changed_selections": 0, "changed_share": 0.0, "per_layer": [],
        });
        serde_json::from_value(
            json!({ "moce_sweep": VERSION, "study": study, "name": name, "capacity": "list.txt", "report": report }),
        )
        .unwrap()
    }

    fn filled(folder: &Path, results: &[CellResult]) -> Store {
        let store = Store::open(folder, results[0].study.clone()).unwrap();
        results.iter().for_each(|result| store.write(result).unwrap());
        store
    }

    #[test]
    fn a_result_is_read_as_it_was_written_unless_its_version_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let store = filled(folder.path(), &[result("a", 1.0, [8, 8])]);
        assert_eq!(store.results().unwrap(), [result("a", 1.0, [8, 8])]);
        let text = std::fs::read_to_string(store.path("a")).unwrap();
        for (other, why) in [("\"moce_sweep\":2,", "version 2"), ("", "moce_sweep")] {
            std::fs::write(store.path("a"), text.replace("\"moce_sweep\":1,", other)).unwrap();
            let error = store.results().unwrap_err();
            let Error::File { path, cause } = error else { panic!("{error}") };
            assert!(path.ends_with("a.json") && cause.to_string().contains(why), "{cause}");
        }
    }

    #[test]
    fn a_file_holds_the_cell_that_it_is_called_after() {
        let folder = tempfile::tempdir().unwrap();
        let store = filled(folder.path(), &[result("a", 1.0, [8, 8])]);
        std::fs::copy(store.path("a"), store.path("a (copy)")).unwrap();
        let error = store.results().unwrap_err().to_string();
        assert!(error.contains("a (copy).json") && error.contains("under another name"), "{error}");
        std::fs::remove_file(store.path("a (copy)")).unwrap();
        let mut short = result("a", 1.0, [8, 8]);
        short.study.layers = 1;
        store.write(&short).unwrap();
        assert!(store.results().unwrap_err().to_string().contains("0 layers where the model has 1"));
    }

    #[test]
    fn the_file_of_a_model_may_have_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut renamed = result("b", 1.0, [8, 8]);
        renamed.study.model = "n.gguf".to_owned();
        filled(&at("one"), &[result("a", 1.0, [8, 8])]);
        filled(&at("two"), &[renamed]);
        assert_eq!(merge(&[at("one"), at("two")], &at("joined"), None).unwrap().len(), 2);
        // And both may hold one cell.
        let mut again = result("a", 1.0, [8, 8]);
        again.study.model = "n.gguf".to_owned();
        filled(&at("three"), &[again]);
        assert_eq!(merge(&[at("one"), at("three")], &at("again"), None).unwrap().len(), 1);
    }

    #[test]
    fn one_cell_under_two_names_is_joined_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        filled(&at("one"), &[result("a", 1.0, [8, 8])]);
        let mut renamed = result("b", 1.0, [8, 8]);
        renamed.capacity = "8".to_owned();
        renamed.report.eviction = "a".to_owned();
        filled(&at("two"), &[renamed]);
        assert_eq!(merge(&[at("one"), at("two")], &at("joined"), None).unwrap().len(), 1);
        assert_eq!(merge(&[at("one")], &at("two"), None).unwrap().len(), 1);
        // Rows with equal caches stand together, however their capacity was written.
        let mut other = result("b", 1.5, [8, 8]);
        other.capacity = "8".to_owned();
        other.report.routing = "prune:k=1".to_owned();
        other.report.eviction = "a".to_owned();
        filled(&at("one"), &[other]);
        let rows = merge(&[at("one")], &at("joined"), None).unwrap();
        assert_eq!(rows.iter().map(|row| &*row.capacity).collect::<Vec<_>>(), ["list.txt", "list.txt"]);
    }

    #[test]
    fn a_folder_with_files_of_another_program_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("results.json"), "precious").unwrap();
        let study = result("a", 1.0, [8, 8]).study;
        assert!(matches!(Store::open(folder.path(), study.clone()), Err(Error::ForeignFolder { .. })));
        assert!(!folder.path().join(CELLS).exists());
        // A sweep's own are replaced.
        std::fs::create_dir(folder.path().join(CELLS)).unwrap();
        Store::open(folder.path(), study).unwrap().publish(None).unwrap();
        assert_ne!(std::fs::read(folder.path().join("results.json")).unwrap(), b"precious");
    }

    #[test]
    fn a_result_of_other_capacities_is_not_kept_under_the_name_of_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = filled(folder.path(), &[result("list.txt_lru_original", 1.0, [8, 8])]);
        let cell = |capacities: [usize; 2], name: &str, eviction: &str| SweepCell {
            name: name.to_owned(),
            capacity: "list.txt".to_owned(),
            capacities: capacities.to_vec(),
            routing: RoutingOptions { eviction: eviction.parse().unwrap(), ..RoutingOptions::default() },
        };
        let name = "list.txt_lru_original";
        let cells = [cell([8, 8], name, "lru"), cell([8, 8], "another", "lru"), cell([8, 8], "third", "lfu")];
        let finished = store.finished(&cells).unwrap();
        let is_there = |cell: &SweepCell| finished.iter().any(|result| result.is_of(cell));
        assert_eq!(cells.each_ref().map(is_there), [true, true, false]);
        for other in [cell([8, 9], name, "lru"), cell([8, 9], "another", "lru"), cell([8, 8], name, "lfu")] {
            assert!(matches!(store.finished(&[other]), Err(Error::OtherCell { .. })));
        }
    }

    #[test]
    fn different_results_of_one_cell_are_not_joined() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        filled(&at("one"), &[result("a", 1.0, [8, 8]), result("b", 1.0, [8, 8])]);
        filled(&at("same"), &[result("b", 1.0, [8, 8]), result("c", 1.0, [8, 8])]);
        filled(&at("other"), &[result("b", 1.5, [8, 8])]);
        filled(&at("edited"), &[result("d", 1.0, [8, 9])]);
        for other in ["other", "edited"] {
            let error = merge(&[at("one"), at(other)], &at("joined"), None).unwrap_err();
            assert!(matches!(error, Error::TwoResults { .. }) && error.to_string().contains(other), "{error}");
            assert!(!at("joined").exists(), "nothing is written");
            // What the output holds already counts as well.
            assert!(matches!(merge(&[at(other)], &at("one"), None), Err(Error::TwoResults { .. })));
        }
        assert_eq!(merge(&[at("one"), at("same")], &at("joined"), None).unwrap().len(), 3);
        let mut foreign = result("e", 1.0, [8, 8]);
        foreign.study.window = 3;
        filled(&at("foreign"), &[foreign]);
        let error = merge(&[at("one"), at("foreign")], &at("again"), None).unwrap_err();
        assert!(matches!(error, Error::OtherStudy { .. }) && error.to_string().contains("foreign"), "{error}");
        assert!(!at("again").exists());
    }
}
