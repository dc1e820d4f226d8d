//! A device of programmable speed: for tests, and for asking what a model would do on another flash.
//!
//! Model: `lanes` reads are worked on at once. Each waits its latency, then moves its bytes over one pipe of a given
//! bandwidth that all lanes share; the others queue. Everything follows from the seed and the times of submission; with a
//! virtual clock nothing sleeps, and a whole run is reproducible.

use super::{Completion, Device, Read};
use crate::Files;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CAPACITY: usize = 256;

/// What a simulated device is like.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// Time before the first byte of a read.
    pub latency: Duration,
    /// Latencies are drawn evenly from `latency` times 1 - jitter to 1 + jitter.
    pub jitter: f64,
    /// Bytes a second, of all lanes together.
    pub bandwidth: f64,
    /// Reads worked on at once.
    pub lanes: usize,
    /// Seed of the jitter.
    pub seed: u64,
    /// The time it lives in.
    pub clock: Clock,
}

impl Default for Simulation {
    /// A fast NVMe drive in virtual time.
    fn default() -> Simulation {
        Simulation {
            latency: Duration::from_micros(80),
            jitter: 0.0,
            bandwidth: 3e9,
            lanes: 32,
            seed: 0,
            clock: Clock::virtual_time(),
        }
    }
}

/// Time as a simulated device sees it.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Real(Instant),
    /// Nanoseconds.
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    /// Waiting sleeps.
    #[must_use]
    pub fn real() -> Clock {
        Clock(Kind::Real(Instant::now()))
    }

    /// Waiting takes no time: the clock jumps to what is waited for. Clones are the same clock.
    #[must_use]
    pub fn virtual_time() -> Clock {
        Clock(Kind::Virtual(Arc::default()))
    }

    /// Time since the clock was made.
    #[must_use]
    pub fn now(&self) -> Duration {
        match &self.0 {
            Kind::Real(start) => start.elapsed(),
            Kind::Virtual(now) => Duration::from_nanos(now.load(Ordering::Relaxed)),
        }
    }

    /// Lets `time` pass: how a simulation accounts for computing.
    pub fn advance(&self, time: Duration) {
        match &self.0 {
            Kind::Real(_) => std::thread::sleep(time),
            Kind::Virtual(now) => {
                now.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
            }
        }
    }

    fn wait_until(&self, then: Duration) {
        match &self.0 {
            Kind::Real(_) => std::thread::sleep(then.saturating_sub(self.now())),
            Kind::Virtual(now) => {
                now.fetch_max(then.as_nanos() as u64, Ordering::Relaxed);
            }
        }
    }
}

/// A simulated device; the bytes come from its files.
pub(crate) struct Simulated {
    files: Arc<Files>,
    simulation: Simulation,
    random: Random,
    /// Reads in the order in which they come back.
    reads: VecDeque<(Duration, Read)>,
    /// When each lane is free again, and when the pipe is.
    lanes: Vec<Duration>,
    depth: usize,
    pipe: Duration,
}

impl Simulated {
    pub(crate) fn new(files: Arc<Files>, simulation: Simulation) -> Simulated {
        let lanes = vec![Duration::ZERO; simulation.lanes.max(1)];
        let random = Random::new(simulation.seed);
        let depth = lanes.len();
        let reads = VecDeque::with_capacity(CAPACITY);
        Simulated { files, simulation, random, reads, lanes, depth, pipe: Duration::ZERO }
    }
}

// SAFETY: targets are written by plain code in `complete` only, while the read is still owned here.
unsafe impl Device for Simulated {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn files(&self) -> &Arc<Files> {
        &self.files
    }

    fn capacity(&self) -> usize {
        CAPACITY
    }

    fn limit_depth(&mut self, depth: usize) {
        self.depth = depth.clamp(1, self.lanes.len());
    }

    fn submit(&mut self, read: Read) {
        let jitter = self.simulation.jitter * (2.0 * self.random.unit() - 1.0);
        let latency = self.simulation.latency.mul_f64((1.0 + jitter).max(0.0));
        let lane = self.lanes[..self.depth].iter_mut().min().expect("there is a lane");
        let start = self.simulation.clock.now().max(*lane) + latency;
        let moving = Duration::from_secs_f64(read.target.len() as f64 / self.simulation.bandwidth);
        self.pipe = self.pipe.max(start) + moving;
        *lane = self.pipe;
        self.reads.push_back((self.pipe, read));
    }

    fn flush(&mut self) {}

    fn complete(&mut self, wait_for: usize, done: &mut Vec<Completion>) -> io::Result<()> {
        // The pipe serves one read after another, so they come back in the order of submission.
        if let Some(&(then, _)) = self.reads.get(wait_for.min(self.reads.len()).wrapping_sub(1)) {
            self.simulation.clock.wait_until(then);
        }
        let now = self.simulation.clock.now();
        while self.reads.front().is_some_and(|&(then, _)| then <= now) {
            let Some((_, mut read)) = self.reads.pop_front() else { break };
            let result = self.files[read.file].read_at(read.via, read.offset, read.target.bytes_mut());
            done.push(Completion { read, result });
        }
        Ok(())
    }
}

impl fmt::Display for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Simulation { latency, bandwidth, lanes, .. } = &self.simulation;
        write!(f, "simulated: {:.2} GB/s, {latency:?}, {lanes} lanes", bandwidth / 1e9)
    }
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").field("simulation", &self.simulation).finish_non_exhaustive()
    }
}

/// SplitMix64: small, seeded, and good enough for jitter and faults.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, not with, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 up to, not with, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}
