//! A warm start: which experts a session had cached, with the state of its policy, saved and taken up again.
//!
//! The file is JSON (`docs/formats/cache-state.md`). It holds no text and no activations.

use crate::{Error, ModelIdentity, NewFile};
use moce_routing::LayerState;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Version of the file format.
const VERSION: u32 = 1;
/// Largest file that is read: some hundred bytes an expert, for more experts than any model has.
const MOST_BYTES: u64 = 64 << 20;

/// The routing state of a session, layer by layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheState {
    version: u32,
    model: ModelIdentity,
    pub(crate) layers: Vec<LayerState>,
}

impl CacheState {
    pub(crate) fn new(model: ModelIdentity, layers: Vec<LayerState>) -> CacheState {
        CacheState { version: VERSION, model, layers }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no cache state of this version.
    pub fn read(path: &Path) -> Result<CacheState, Error> {
        let error = |what: String| Error::CacheState { path: path.to_owned(), what };
        let file = File::open(path).map_err(|cause| error(format!("cannot be opened: {cause}")))?;
        let state: CacheState = serde_json::from_reader(BufReader::new(file.take(MOST_BYTES)))
            .map_err(|cause| error(format!("is no cache state: {cause}")))?;
        if state.version != VERSION {
            return Err(error(format!("has version {}, expected {VERSION}", state.version)));
        }
        Ok(state)
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let error = |cause: std::io::Error| Error::CacheState {
            path: path.to_owned(),
            what: format!("cannot be written: {cause}"),
        };
        let mut file = NewFile::create(path, true).map_err(error)?;
        serde_json::to_writer(&mut file, self).map_err(|cause| error(cause.into()))?;
        file.finish().map_err(error)
    }

    /// An error if the state is of another model.
    pub(crate) fn check(&self, model: ModelIdentity, layers: usize) -> Result<(), Error> {
        if self.model != model || self.layers.len() != layers {
            return Err(Error::CacheStateModel { saved: self.model.to_string(), opened: model.to_string() });
        }
        Ok(())
    }
}
