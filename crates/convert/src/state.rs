//! Whether a model's files stay what they are while they are read: what is made of files that change is made of nothing.

use crate::Error;
use moce_gguf::Gguf;
use std::time::SystemTime;

/// Size and time of the last change of each part; of none that is in memory.
pub(crate) struct State(Vec<Option<(u64, SystemTime)>>);

impl State {
    /// The state of an open model's files.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn of(gguf: &Gguf) -> Result<State, Error> {
        let mut parts = Vec::new();
        for part in gguf.parts() {
            let failed = |source| moce_gguf::Error::File { file: part.path().into(), action: "look at", source };
            let metadata = part.file().map(std::fs::File::metadata).transpose().map_err(failed)?;
            let state = metadata.map(|found| Ok((found.len(), found.modified()?))).transpose().map_err(failed)?;
            parts.push(state);
        }
        Ok(State(parts))
    }

    /// Fails if one of them is another now.
    ///
    /// # Errors
    /// [`Error::Changed`], or what the system says.
    pub(crate) fn check(&self, gguf: &Gguf) -> Result<(), Error> {
        let now = State::of(gguf)?;
        match self.0.iter().zip(&now.0).position(|(then, now)| then != now) {
            Some(part) => Err(Error::Changed { file: gguf.parts()[part].path().into() }),
            None => Ok(()),
        }
    }
}
