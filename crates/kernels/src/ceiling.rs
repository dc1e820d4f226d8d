//! What the machine can do at most: reading memory, and integer dot products from registers.
//!
//! Kernels are judged by their share of these ceilings in the same run. The functions only do the work and say how much it was;
//! who calls them holds the clock, interleaves them with what is judged and takes medians. A ceiling is the best of several loops:
//! a kernel above it would mean that the loops are not good enough.

use crate::{Cpu, Isa, arch, split};
use std::sync::atomic::{AtomicU64, Ordering};

/// A way to read memory once from end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLoop {
    /// Places that a thread reads from in turn, 256 bytes each time.
    pub streams: usize,
    /// How far ahead each stream asks for data; 0: left to the hardware.
    pub prefetch_bytes: usize,
}

impl ReadLoop {
    /// Every loop: 1 to 8 streams, with and without prefetch at several distances.
    pub const ALL: [ReadLoop; 16] = {
        let mut loops = [ReadLoop { streams: 1, prefetch_bytes: 0 }; 16];
        let mut i = 0;
        while i < loops.len() {
            loops[i] = ReadLoop { streams: 1 << (i / 4), prefetch_bytes: [0, 512, 2048, 8192][i % 4] };
            i += 1;
        }
        loops
    };
}

impl Cpu {
    /// Reads `bytes` once with the widest loads, each compute thread a contiguous part; returns the bytes read.
    ///
    /// For a ceiling of memory it must be far larger than the caches, and on huge pages.
    ///
    /// # Panics
    /// If there is no loop of so many streams.
    pub fn read(&self, bytes: &[u8], how: ReadLoop) -> u64 {
        assert!(matches!(how.streams, 1 | 2 | 4 | 8), "a read loop of {} streams", how.streams);
        let read = AtomicU64::new(0);
        self.pool.run(&|index| {
            // Whole turns of all streams, so that every byte counted was read.
            let part = &bytes[split(bytes.len(), self.pool.threads(), index)];
            let part = &part[..part.len() / (256 * how.streams) * (256 * how.streams)];
            let folded = match self.isa {
                Isa::Scalar => arch::scalar::ceiling::read(part, how),
                // SAFETY: `Cpu::new` has proved that this CPU has the instruction set.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { arch::x86_64::avx2::ceiling::read(part, how) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni => unsafe { arch::x86_64::avx512::ceiling::read(part, how) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("this CPU has no {}", self.isa),
            };
            std::hint::black_box(folded);
            read.fetch_add(part.len() as u64, Ordering::Relaxed);
        });
        read.into_inner()
    }

    /// Runs the instructions of an integer dot product `rounds` times on every compute thread, from registers, on enough independent
    /// accumulators to hide their latency; returns the number of multiply-adds.
    pub fn dots(&self, rounds: usize) -> u64 {
        let done = AtomicU64::new(0);
        self.pool.run(&|_| {
            let count = match self.isa {
                Isa::Scalar => arch::scalar::ceiling::dots(rounds),
                // SAFETY: as in `read`.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { arch::x86_64::avx2::ceiling::dots(rounds) },
                // SAFETY: as in `read`.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni => unsafe { arch::x86_64::avx512::ceiling::dots(rounds) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("this CPU has no {}", self.isa),
            };
            done.fetch_add(count, Ordering::Relaxed);
        });
        done.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuOptions;

    #[test]
    fn every_loop_reads_all_but_a_last_turn() {
        let bytes = vec![1; (64 << 10) + 100];
        for isa in Isa::available() {
            let cpu =
                Cpu::new(&CpuOptions { isa: Some(isa), threads: Some(2), ..Default::default() }).expect("available");
            for how in ReadLoop::ALL {
                let read = cpu.read(&bytes, how) as usize;
                assert!(read <= bytes.len() && read + 2 * 256 * how.streams > bytes.len(), "{isa} {how:?}: {read}");
            }
            assert!(cpu.dots(10) > 0);
        }
    }
}
