//! Which model a command uses: the one named, `$MOCE_MODEL`, or the demo model that ships with moce.

use anyhow::{Context, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Folders above the executable in which `models/` is looked for.
const LEVELS_ABOVE_EXECUTABLE: usize = 3;

/// The model file to open.
pub(crate) fn resolve(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let variable = std::env::var_os("MOCE_MODEL").filter(|path| !path.is_empty());
    if let Some(path) = chosen(named, variable)? {
        return Ok(path);
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

/// The model that is named, or that of `MOCE_MODEL`. One that is not there is refused here where more can be said than that.
fn chosen(named: Option<&Path>, variable: Option<OsString>) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = named {
        let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
        return match path.metadata() {
            // A text as it stands, perhaps with line ends in it.
            Err(error) if !is_gguf => {
                bail!("{path:?}: cannot open: {error}; MODEL is a .gguf file, and a text goes behind -p or -f")
            }
            _ => Ok(Some(path.to_owned())),
        };
    }
    let Some(path) = variable.map(PathBuf::from) else { return Ok(None) };
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            bail!("{} (from MOCE_MODEL): this is a folder; a model is a .gguf file in it", path.display())
        }
        Ok(_) => Ok(Some(path)),
        Err(error) => bail!("{} (from MOCE_MODEL): cannot open: {error}", path.display()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_the_place_of_a_model_is_told_where_it_goes() {
        let choose = |named: &str| chosen(Some(named.as_ref()), None);
        for text in ["Once upon a time", "no\nsuch", "nosuch.txt"] {
            let message = choose(text).unwrap_err().to_string();
            assert!(message.contains("cannot open") && message.contains("behind -p or -f"), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
        // Whoever opens these says what is wrong with them, if anything is.
        for path in ["nosuch.gguf", env!("CARGO_MANIFEST_DIR"), concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")] {
            assert_eq!(choose(path).unwrap(), Some(path.into()));
        }
    }

    #[test]
    fn a_model_of_the_variable_that_cannot_be_opened_names_the_variable() {
        let choose = |variable: &str| chosen(None, Some(variable.into()));
        for (path, why) in [("nosuch.gguf", "cannot open"), (env!("CARGO_MANIFEST_DIR"), "a folder")] {
            let message = choose(path).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{path} (from MOCE_MODEL): ")) && message.contains(why), "{message}");
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert_eq!(choose(file).unwrap(), Some(file.into()));
        // What is named goes before it.
        assert_eq!(chosen(Some(file.as_ref()), Some("nosuch.gguf".into())).unwrap(), Some(file.into()));
        assert_eq!(chosen(None, None).unwrap(), None);
    }
}
