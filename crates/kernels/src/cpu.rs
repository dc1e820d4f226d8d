//! The kernel table and the worker pool of one engine, chosen once at start.

use crate::{Error, Isa, Pool, topology};

/// What to run on; the default is the best that this machine has.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Forces an instruction set.
    pub isa: Option<Isa>,
    /// Compute threads, the calling thread included; by default one a physical core.
    pub threads: Option<usize>,
    /// Binds compute thread `i` to processor `affinity[i]` (Linux); the thread that calls [`Cpu::new`] is the first.
    pub affinity: Option<Vec<usize>>,
}

/// The instruction set and the worker pool: everything that an operation needs besides its operands.
#[derive(Debug)]
pub struct Cpu {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
}

impl Cpu {
    /// Chooses the kernels and starts the worker threads.
    ///
    /// # Errors
    /// The forced instruction set is absent, or the system refuses a thread or a processor.
    pub fn new(options: &CpuOptions) -> Result<Cpu, Error> {
        let isa = options.isa.unwrap_or_else(Isa::best).require()?;
        let threads = options.threads.unwrap_or_else(topology::physical_cores);
        Ok(Cpu { isa, pool: Pool::with_affinity(threads, options.affinity.as_deref())? })
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
