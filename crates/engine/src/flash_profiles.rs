//! What probes of flash found, kept from run to run: a small JSON file with one tuning for each device, way to read it and size of reads.
//!
//! It is a convenience: a file that cannot be read is made anew, one that cannot be written is done without.

use crate::NewFile;
use moce_flash::{Fetcher, Mode, Tuning};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The file's contents; the keys are [`key`]s.
#[derive(Default, Serialize, Deserialize)]
struct Profiles {
    version: u32,
    tunings: BTreeMap<String, SavedTuning>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct SavedTuning {
    piece_bytes: usize,
    depth: usize,
}

const VERSION: u32 = 1;
/// Beyond these no probe goes; a file that says otherwise was not written by one.
const MOST_DEPTH: usize = 1024;
const MOST_PIECE_BYTES: usize = 64 << 20;

/// Which device, how it is read (what was opened, not what was asked for), and how large the slices of an expert are; `None` where the
/// system does not number devices.
pub(crate) fn key(fetcher: &Fetcher, slices: &[usize]) -> Option<String> {
    #[cfg(unix)]
    {
        let (files, backend) = (fetcher.files(), fetcher.device());
        let device = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(files.first()?.path()).ok()?);
        let is_direct = files.iter().all(|file| *file.mode() == Mode::Direct);
        let mode = if is_direct { "direct" } else { "buffered" };
        Some(format!("device {device}, {backend}, {mode}, slices {slices:?}"))
    }
    #[cfg(not(unix))]
    {
        let _ = (fetcher, slices);
        None
    }
}

/// The tuning that was found earlier.
pub(crate) fn find(file: &Path, key: &str) -> Option<Tuning> {
    let saved = *read(file)?.tunings.get(key)?;
    let sane = (1..=MOST_DEPTH).contains(&saved.depth) && (1..=MOST_PIECE_BYTES).contains(&saved.piece_bytes);
    sane.then_some(Tuning { piece_bytes: saved.piece_bytes, depth: saved.depth })
}

/// Keeps a tuning.
pub(crate) fn keep(file: &Path, key: String, tuning: Tuning) -> std::io::Result<()> {
    let mut profiles = read(file).unwrap_or_default();
    profiles.version = VERSION;
    profiles.tunings.insert(key, SavedTuning { piece_bytes: tuning.piece_bytes, depth: tuning.depth });
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    let mut new = NewFile::create(file, true)?;
    serde_json::to_writer_pretty(&mut new, &profiles)?;
    new.finish()
}

fn read(file: &Path) -> Option<Profiles> {
    let profiles: Profiles = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (profiles.version == VERSION).then_some(profiles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_flash::{Arena, Backend, Direct, Files, Options, SlotClass};
    use std::sync::Arc;

    /// A tuning for buffered reads says little about direct ones.
    #[test]
    fn a_key_says_how_the_device_is_read_and_not_what_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model");
        std::fs::write(&path, vec![1; 1 << 14]).unwrap();
        let arena = Arc::new(Arena::reserve(&[SlotClass { bytes: 4096, count: 1 }]).unwrap());
        let opened = |backend, direct| {
            let files = Arc::new(Files::open([&path], direct).unwrap());
            let options = Options { backend, ..Options::default() };
            let fetcher = Fetcher::open(Arc::clone(&files), Arc::clone(&arena), &options).unwrap();
            (key(&fetcher, &[1, 2]).unwrap(), *files[0].mode() == Mode::Direct)
        };
        let (buffered, _) = opened(Backend::Pread, Direct::Off);
        assert!(buffered.ends_with("pread, buffered, slices [1, 2]"), "{buffered}");
        let (either, is_direct) = opened(Backend::Pread, Direct::Auto);
        assert_eq!(either != buffered, is_direct, "{either}");
        let (auto, _) = opened(Backend::Auto, Direct::Off);
        assert!(auto == buffered || auto.ends_with("io_uring, buffered, slices [1, 2]"), "{auto}");
    }

    #[test]
    fn tunings_are_found_again_and_nonsense_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/flash.json");
        assert!(find(&file, "x").is_none());
        let tuning = Tuning { piece_bytes: 4096, depth: 8 };
        keep(&file, "x".into(), tuning).unwrap();
        keep(&file, "y".into(), Tuning { depth: 4, ..tuning }).unwrap();
        assert_eq!((find(&file, "x"), find(&file, "z")), (Some(tuning), None));
        std::fs::write(&file, r#"{"version":1,"tunings":{"x":{"piece_bytes":0,"depth":8}}}"#).unwrap();
        assert!(find(&file, "x").is_none());
        std::fs::write(&file, "no JSON").unwrap();
        assert!(find(&file, "x").is_none());
        keep(&file, "x".into(), tuning).unwrap();
        assert_eq!(find(&file, "x"), Some(tuning));
    }
}
