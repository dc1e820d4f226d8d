//! Which model a command uses: the one named, `$MOCE_MODEL`, or the demo model that ships with moce.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};

/// Folders above the executable in which `models/` is looked for.
const LEVELS_ABOVE_EXECUTABLE: usize = 3;

/// The model file to open.
pub(crate) fn resolve(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("MOCE_MODEL").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let folders = demo_folders();
    match folders.iter().find_map(|folder| find_demo(folder)) {
        Some(path) => Ok(path),
        None => {
            let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            bail!(
                "no model was named and the demo model is not in {}; give a GGUF file, or set MOCE_MODEL",
                looked.join(", ")
            )
        }
    }
}

/// `$MOCE_HOME/models`, then `models` beside the executable and above it, then in the source tree moce was built from.
fn demo_folders() -> Vec<PathBuf> {
    let home = std::env::var_os("MOCE_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let executable = std::env::current_exe().ok().and_then(|path| path.canonicalize().ok());
    let beside = executable.iter().flat_map(|path| path.ancestors().skip(1).take(1 + LEVELS_ABOVE_EXECUTABLE));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_owned);
    home.into_iter().chain(beside.map(Path::to_owned)).chain(source).map(|folder| folder.join("models")).collect()
}

/// The last of the models `demo*.gguf` in a folder, by name; of a split one the first part.
fn find_demo(folder: &Path) -> Option<PathBuf> {
    let entries = folder.read_dir().ok()?;
    let is_demo = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("demo") && name.ends_with(".gguf") && (name.contains("-00001-of-") || !name.contains("-of-"))
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_demo).max()
}

/// Reads a text file, or standard input for `-`.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    if path == Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).context("cannot read standard input as UTF-8 text");
    }
    std::fs::read_to_string(path).with_context(|| format!("cannot read {} as UTF-8 text", path.display()))
}
