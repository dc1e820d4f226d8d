//! Opens a model's files for reading experts, and the store that they are read into.

use crate::Error;
use crate::experts::{ExpertStore, LayerCatalogue, StoreOptions};
use crate::flash_profiles;
use crate::plan::MemoryPlan;
use moce_flash::{Arena, Backend, Check, Direct, Faults, Fetcher, Files, ModelFile, Options, Probe, SlotId};
use moce_gguf::Gguf;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long the probe for the best depth and cut of reads may go on after it has tried each once.
const PROBE_LIMIT: Duration = Duration::from_millis(300);
/// The block that a file in memory is read by.
const MEMORY_BLOCK_BYTES: usize = 4096;

/// How experts are read.
#[derive(Clone, Debug, Default)]
pub struct FlashOptions {
    /// What carries out the reads.
    pub backend: Backend,
    /// Whether files are read past the page cache.
    pub direct: Direct,
    /// Reads at once; `None`: a short probe finds out.
    pub depth: Option<usize>,
    /// A file that keeps what probes found, one for all devices and models; `None`: each opening probes.
    pub profiles: Option<PathBuf>,
    /// Reads misbehave as this says, and as it is changed to say while the engine runs: for tests of what is above.
    pub faults: Option<Arc<Mutex<Faults>>>,
    /// Whether what is read of an expert is compared with its checksum; only packed models have them.
    pub verify: bool,
}

/// Random faults are the same in every run.
const FAULT_SEED: u64 = 0;

/// The model's parts, as files to read experts from. They count as changed if they are not what they were before their headers were read.
pub(crate) fn open_files(gguf: &Gguf, direct: Direct) -> Result<Files, Error> {
    let parts = gguf.parts().iter().enumerate().map(|(index, part)| match (part.file(), part.metadata()) {
        (Some(file), Some(metadata)) => {
            let file =
                file.try_clone().map_err(|cause| moce_flash::Error::Open { path: part.path().to_owned(), cause })?;
            Ok(ModelFile::from_file(file, part.path(), metadata.into(), direct)?)
        }
        _ => {
            let mut bytes = vec![0; part.bytes() as usize];
            gguf.read_at(index, 0, &mut bytes)?;
            Ok(ModelFile::in_memory(&part.path().to_string_lossy(), bytes, MEMORY_BLOCK_BYTES))
        }
    });
    Ok(Files::new(parts.collect::<Result<_, Error>>()?))
}

/// A fetcher into `arena` that reads experts of `layers`, tuned by a short probe into `slots` if there are any.
pub(crate) fn open_fetcher(
    layers: &[LayerCatalogue],
    files: Files,
    arena: &Arc<Arena>,
    slots: &[SlotId],
    options: &FlashOptions,
) -> Result<Fetcher, Error> {
    let mut flash = Options { backend: options.backend, ..Options::default() };
    if let Some(depth) = options.depth {
        flash = flash.with_depth(depth);
    }
    let (files, arena) = (Arc::new(files), Arc::clone(arena));
    let mut fetcher = match &options.faults {
        None => Fetcher::open(files, arena, &flash)?,
        Some(faults) => Fetcher::faulty(files, arena, &flash, Arc::clone(faults), FAULT_SEED)?,
    };
    if !slots.is_empty() {
        let slices = layers[0].slices(0).map(|slice| slice.bytes);
        tune(&mut fetcher, &slices, slots, options);
    }
    Ok(fetcher)
}

/// The store of a plan, and how it reads, in words.
pub(crate) fn open_store(
    layers: &[LayerCatalogue],
    files: Files,
    plan: &MemoryPlan,
    options: &FlashOptions,
    check: Option<Box<Check>>,
) -> Result<(ExpertStore, String), Error> {
    let store = StoreOptions { layers, slots: &plan.resident, staging: plan.staging, block_bytes: files.block_bytes() };
    let arena = Arc::new(Arena::reserve(&store.classes())?);
    if layers.is_empty() {
        return Ok((ExpertStore::new(&store, arena, None), "no experts".to_owned()));
    }
    let staging: Vec<SlotId> = if plan.streams() { arena.slots(layers.len()).collect() } else { Vec::new() };
    let mut fetcher = open_fetcher(layers, files, &arena, &staging, options)?;
    if let Some(check) = check {
        fetcher.check_slices(check);
    }
    let words = fetcher.to_string();
    Ok((ExpertStore::new(&store, arena, Some(fetcher)), words))
}

/// Sets depth and cut of reads: what was found earlier for this device, or what a short probe finds. It only costs speed if neither works.
fn tune(fetcher: &mut Fetcher, slices: &[usize], slots: &[SlotId], options: &FlashOptions) {
    let kept = options.profiles.as_ref().filter(|_| options.depth.is_none());
    let kept = kept.and_then(|file| Some((file, flash_profiles::key(fetcher, slices)?)));
    if let Some(tuning) = kept.as_ref().and_then(|(file, key)| flash_profiles::find(file, key)) {
        fetcher.set_tuning(tuning);
        return;
    }
    match fetcher.probe(&Probe { slices, slots, limit: PROBE_LIMIT, depth: options.depth, seed: 0 }) {
        Err(error) => tracing::warn!(%error, "flash could not be probed"),
        Ok(profile) => {
            if let Some((file, key)) = kept
                && let Err(error) = flash_profiles::keep(file, key, profile.tuning)
            {
                tracing::info!(%error, file = %file.display(), "the flash profile could not be kept");
            }
        }
    }
}
