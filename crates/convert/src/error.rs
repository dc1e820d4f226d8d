//! What can go wrong while a model file is made.

use std::io;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A GGUF file cannot be read or written.
    #[error(transparent)]
    Gguf(#[from] moce_gguf::Error),
    /// The model's headers are none that moce runs.
    #[error(transparent)]
    Engine(#[from] moce_engine::Error),
    /// A model that need not be packed again.
    #[error("{}: packed already, for {isa:?}; pack the original for another instruction set", file.display())]
    AlreadyPacked {
        /// The model file.
        file: PathBuf,
        /// What it is packed for.
        isa: String,
    },
    /// A model that would be written over itself.
    #[error("{}: it is the model that is read; give another name", file.display())]
    OutputIsSource {
        /// The output.
        file: PathBuf,
    },
    /// A model without anything to pack.
    #[error("{}: the model has no experts, so there is nothing to pack", file.display())]
    NoExperts {
        /// The model file.
        file: PathBuf,
    },
    /// Somebody wrote to the model while it was read.
    #[error("{}: it changed while it was read; try again when nothing writes to it", file.display())]
    Changed {
        /// The model file.
        file: PathBuf,
    },
    /// The caller stopped reading.
    #[error("stopped before every byte was read")]
    Interrupted,
    /// No shape has this name.
    #[error("unknown shape '{given}' (there are: {known})")]
    UnknownShape {
        /// What was asked for.
        given: String,
        /// Names that exist.
        known: String,
    },
    /// A shape that no file can have.
    #[error("shape {shape}: {what}")]
    Shape {
        /// Its name.
        shape: String,
        /// What is wrong.
        what: String,
    },
    /// The disk has too little room.
    #[error(
        "{}: {} needed, {} free; choose another folder or make room",
        folder.display(), gigabytes(*wanted), gigabytes(*free)
    )]
    Space {
        /// Where the file would go.
        folder: PathBuf,
        /// Bytes that the file needs.
        wanted: u64,
        /// Bytes that there are.
        free: u64,
    },
    /// The folder cannot be looked at.
    #[error("{}: cannot tell how much room there is", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The caller stopped the work; nothing was left behind.
    #[error("stopped before {} was whole; nothing is left behind", file.display())]
    Stopped {
        /// The file that was being made.
        file: PathBuf,
    },
}

/// A size as disks are sold.
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
