//! The kernel table and the worker pool of one engine, chosen once at start.

use crate::{Isa, Pool};

/// What to run on; the default is the best that this machine has.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Forces an instruction set.
    pub isa: Option<Isa>,
    /// Compute threads, the calling thread included; by default one a physical core.
    pub threads: Option<usize>,
}

/// The instruction set and the worker pool: everything that an operation needs besides its operands.
#[derive(Debug)]
pub struct Cpu {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
}

impl Cpu {
    /// Chooses the kernels and starts the worker threads.
    pub fn new(options: &CpuOptions) -> Cpu {
        let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
        Cpu { isa: options.isa.unwrap_or_else(Isa::best), pool: Pool::new(threads) }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Compute threads, the calling thread included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}
