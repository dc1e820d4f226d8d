//! Which device reads the model: the user's choice, or the best that this system allows, with the reason in words.

use crate::device::pread::{MOST_THREADS, Pread};
use crate::device::simulated::{Simulated, Simulation};
use crate::device::{Device, faulty};
use crate::{Arena, Error, Faults, Fetcher, Files, Tuning};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

/// Threads of a pread pool if nothing else is said: more only add latency on phones, fewer leave NVMe drives waiting.
const DEFAULT_THREADS: usize = 16;

/// What carries out the reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// io_uring where the system allows it, else pread.
    #[default]
    Auto,
    /// io_uring.
    Uring,
    /// A pool of threads.
    Pread,
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(given: &str) -> Result<Backend, Error> {
        match given {
            "auto" => Ok(Backend::Auto),
            "uring" => Ok(Backend::Uring),
            "pread" => Ok(Backend::Pread),
            _ => Err(Error::UnknownBackend { given: given.to_owned() }),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Auto => "auto",
            Backend::Uring => "uring",
            Backend::Pread => "pread",
        })
    }
}

/// How to read.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What carries out the reads.
    pub backend: Backend,
    /// Cut and depth, to start with.
    pub tuning: Tuning,
    /// Threads of a pread pool.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { backend: Backend::Auto, tuning: Tuning::default(), threads: DEFAULT_THREADS }
    }
}

impl Options {
    /// Reads of exactly this depth: also as many threads.
    #[must_use]
    pub fn with_depth(mut self, depth: usize) -> Options {
        self.tuning.depth = depth;
        self.threads = depth.clamp(1, MOST_THREADS);
        self
    }
}

impl Fetcher {
    /// A fetcher of `files` into `arena`.
    ///
    /// # Errors
    /// The backend is not available here.
    pub fn open(files: Arc<Files>, arena: Arc<Arena>, options: &Options) -> Result<Fetcher, Error> {
        let device = open_device(files, arena.clone(), options)?;
        Ok(Fetcher::with_device(device, arena, options.tuning))
    }

    /// A fetcher on a simulated device, for tests and predictions.
    #[must_use]
    pub fn simulated(files: Arc<Files>, arena: Arc<Arena>, simulation: Simulation, tuning: Tuning) -> Fetcher {
        Fetcher::with_device(Box::new(Simulated::new(files, simulation)), arena, tuning)
    }

    /// As [`Fetcher::open`], with faults: for tests of what is above. `faults` may be changed while it runs.
    ///
    /// # Errors
    /// As [`Fetcher::open`].
    pub fn faulty(
        files: Arc<Files>,
        arena: Arc<Arena>,
        options: &Options,
        faults: Arc<Mutex<Faults>>,
        seed: u64,
    ) -> Result<Fetcher, Error> {
        let device = faulty::Faulty::new(open_device(files, arena.clone(), options)?, faults, seed);
        Ok(Fetcher::with_device(Box::new(device), arena, options.tuning))
    }
}

fn open_device(files: Arc<Files>, arena: Arc<Arena>, options: &Options) -> Result<Box<dyn Device>, Error> {
    match options.backend {
        Backend::Pread => Ok(Box::new(Pread::new(files, options.threads, None)?)),
        Backend::Uring => open_uring(files, arena),
        Backend::Auto => match open_uring(files.clone(), arena) {
            Ok(device) => Ok(device),
            Err(reason) => Ok(Box::new(Pread::new(files, options.threads, Some(reason.to_string()))?)),
        },
    }
}

#[cfg(target_os = "linux")]
fn open_uring(files: Arc<Files>, arena: Arc<Arena>) -> Result<Box<dyn Device>, Error> {
    Ok(Box::new(crate::device::uring::Uring::new(files, arena)?))
}

#[cfg(not(target_os = "linux"))]
fn open_uring(_files: Arc<Files>, _arena: Arc<Arena>) -> Result<Box<dyn Device>, Error> {
    let cause = std::io::Error::from(std::io::ErrorKind::Unsupported);
    Err(Error::Unavailable { device: "io_uring", cause })
}
