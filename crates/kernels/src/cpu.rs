//! The kernel table and the worker pool of one engine, chosen once at start.

use crate::affinity::Binding;
use crate::{Error, Isa, Pool, topology};

/// What to run on; the default is the best that this machine has.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Forces an instruction set.
    pub isa: Option<Isa>,
    /// Compute threads, the calling thread included; by default one for each processor of `affinity`, else one a physical core.
    pub threads: Option<usize>,
    /// Binds compute thread `i` to processor `affinity[i]` (Linux). The first is the thread that computes, while it does:
    /// [`Cpu::bind_caller`].
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
        let affinity = options.affinity.as_deref();
        let threads = options.threads.or(affinity.map(<[usize]>::len)).unwrap_or_else(topology::physical_cores);
        Ok(Cpu { isa, pool: Pool::with_affinity(threads, affinity)? })
    }

    /// Binds the calling thread as the first compute thread, until what is returned is dropped: see [`Pool::bind_caller`].
    pub fn bind_caller(&self) -> Option<Binding> {
        self.pool.bind_caller()
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

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use rustix::thread::{CpuSet, sched_getaffinity};

    /// Whoever opens an engine reads files and starts threads, too, and may open another engine.
    #[test]
    fn a_list_of_processors_gives_the_threads_and_binds_the_caller_only_while_it_computes() {
        let before = sched_getaffinity(None).expect("Linux says");
        let first = (0..CpuSet::MAX_CPU).find(|&processor| before.is_set(processor)).expect("it runs on one");
        let cpu = Cpu::new(&CpuOptions { affinity: Some(vec![first, first]), ..CpuOptions::default() });
        let cpu = cpu.expect("the processor exists");
        let now = || sched_getaffinity(None).expect("Linux says");
        assert_eq!(cpu.threads(), 2);
        assert!(now() == before);
        {
            let _bound = cpu.bind_caller();
            assert!(now().count() == 1 && now().is_set(first));
        }
        assert!(now() == before);
        assert!(Cpu::new(&CpuOptions::default()).expect("the default").bind_caller().is_none());
    }
}
