//! The rules of the tree: crates depend only on crates above them, `unsafe` stays in its zones, every file says what it is.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use std::fs;
use std::path::{Path, PathBuf};

/// Crates in order: each may depend only on those before it. `testkit` is for tests alone.
const ORDER: [&str; 9] = ["quant", "gguf", "flash", "kernels", "routing", "engine", "convert", "lab", "cli"];
const UNSAFE_ZONES: [&str; 2] = ["flash", "kernels"];

fn crates_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn crate_names() -> Vec<String> {
    let folders =
        fs::read_dir(crates_folder()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    folders.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The crates of this workspace that a manifest depends on, dev-dependencies aside.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_dependencies = line.ends_with("dependencies]") && !line.contains("dev-dependencies");
        } else if in_dependencies && let Some(rest) = line.strip_prefix("moce-") {
            found.push(rest.split(['.', ' ', '=']).next().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn crates_depend_only_on_crates_above_them() {
    let mut edges = 0;
    for name in crate_names().iter().filter(|name| *name != "testkit") {
        let place =
            ORDER.iter().position(|known| known == name).unwrap_or_else(|| panic!("{name} has no place in ORDER"));
        let manifest = fs::read_to_string(crates_folder().join(name).join("Cargo.toml")).unwrap();
        for dependency in dependencies(&manifest) {
            edges += 1;
            assert!(
                ORDER[..place].contains(&dependency.as_str()),
                "{name} depends on {dependency}, which is not above it"
            );
        }
    }
    // The check reads manifests as text: it must have seen something.
    assert!(edges >= 8, "only {edges} dependencies found");
}

#[test]
fn unsafe_code_stays_in_its_zones() {
    for name in crate_names() {
        let root = crates_folder().join(&name).join("src");
        let entry = ["lib.rs", "main.rs"].map(|file| root.join(file)).into_iter().find(|path| path.exists()).unwrap();
        let forbids = fs::read_to_string(&entry).unwrap().contains("#![forbid(unsafe_code)]");
        let is_zone = UNSAFE_ZONES.contains(&name.as_str());
        assert_ne!(
            forbids,
            is_zone,
            "{}: forbid(unsafe_code) belongs into every crate but {UNSAFE_ZONES:?}",
            entry.display()
        );
    }
}

#[test]
fn every_source_file_says_what_it_is() {
    for name in crate_names() {
        for path in sources(&crates_folder().join(&name).join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} does not open with a //! line", path.display());
        }
    }
}
