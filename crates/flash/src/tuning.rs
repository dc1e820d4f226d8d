//! How reads are cut and how many are on the device at once, and the short probe that chooses both for a device.
//!
//! The probe reads as the engine will: bursts of whole experts at random places, drained before the next; all candidates take
//! turns, those that fall far behind are left out. Of those that come close to the best it keeps the one with the fewest
//! bytes on the device: a device serves what it has at once, so with a whole burst on it, all experts land at its end and
//! none can be computed meanwhile. (Measured on a virtual NVMe drive, bursts of four experts of 4.9 MB: at the same rate the
//! first expert landed after 35 % of the burst with 4 reads at once, after 100 % with 128.) Not fewer than the device reads
//! in [`BRIDGED`] though: the queue is filled up only when the computing thread looks at it.

use crate::device::simulated::Random;
use crate::{Error, Fetcher, Slice, SlotId, Urgency};
use std::fmt;
use std::time::{Duration, Instant};

/// How reads are cut and how many are on the device at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// A read has at most so many bytes; larger windows are cut evenly.
    pub piece_bytes: usize,
    /// Reads on the device at once.
    pub depth: usize,
}

impl Default for Tuning {
    /// Close to the best of most NVMe drives.
    fn default() -> Tuning {
        Tuning { piece_bytes: 2 << 20, depth: 8 }
    }
}

impl Tuning {
    /// Bytes of the pieces of a window, whole blocks.
    pub(crate) fn piece_of(self, window_bytes: usize, block_bytes: usize) -> usize {
        let count = window_bytes.div_ceil(self.piece_bytes.max(block_bytes)).max(1);
        window_bytes.div_ceil(count).next_multiple_of(block_bytes)
    }
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} reads of {} KiB at once", self.depth, self.piece_bytes >> 10)
    }
}

/// What to probe.
#[derive(Clone, Debug)]
pub struct Probe<'a> {
    /// Lengths of the slices of an expert.
    pub slices: &'a [usize],
    /// Slots to read into, free ones; as many experts are read at once, fewer or parts of them where they are large.
    pub slots: &'a [SlotId],
    /// How long it may take, but every tuning is tried once.
    pub limit: Duration,
    /// The depth to keep to, if it is not to be chosen.
    pub depth: Option<usize>,
    /// Seed of the places.
    pub seed: u64,
}

/// What a probe found: to be kept for each device.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The best tuning.
    pub tuning: Tuning,
    /// Its median rate: bytes of slices a second, in drained bursts.
    pub bandwidth: f64,
    /// Every tuning that was tried, with the best rate it reached.
    pub tried: Vec<(Tuning, f64)>,
}

const PIECES: [usize; 3] = [256 << 10, 1 << 20, 4 << 20];
const DEPTHS: [usize; 4] = [4, 8, 16, 64];

/// A candidate that reaches less than this share of the best is left out of the next rounds.
const FAR_BEHIND: f64 = 0.7;
/// Rates as near to the best as this count as equal: less than the device varies by itself.
const CLOSE: f64 = 0.93;
/// A burst is no larger than this, so that a slow device is known within seconds.
const BURST_BYTES: usize = 16 << 20;
/// How long the reads on the device should last, so that a computing thread need not look more often than this.
const BRIDGED: Duration = Duration::from_millis(2);

struct Candidate {
    tuning: Tuning,
    rates: Vec<f64>,
}

impl Candidate {
    /// What it reached: whatever else the machine does only slows a burst down, often by half.
    fn best(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(0.0)
    }
}

impl Fetcher {
    /// Tries depths and splits, each at least once, for about `probe.limit`, and keeps to the best. The slots are free afterwards.
    ///
    /// # Errors
    /// A read fails, a slot is in use or too small, or no file is as large as a slice. The tuning is what it was then.
    pub fn probe(&mut self, probe: &Probe<'_>) -> Result<Profile, Error> {
        let begin = Instant::now();
        let depths = probe.depth.as_ref().map_or(DEPTHS.as_slice(), std::slice::from_ref);
        let mut candidates: Vec<Candidate> = depths
            .iter()
            .flat_map(|&depth| PIECES.map(|piece_bytes| Tuning { piece_bytes, depth }))
            .map(|tuning| Candidate { tuning, rates: Vec::new() })
            .collect();
        let before = self.tuning();
        let mut random = Random::new(probe.seed);
        // The first burst finds a sleeping device; its time says nothing.
        let measured = self.burst(probe, &mut random).and_then(|_| {
            'rounds: loop {
                let best = candidates.iter().map(Candidate::best).fold(0.0, f64::max);
                for candidate in
                    candidates.iter_mut().filter(|one| one.rates.is_empty() || one.best() >= FAR_BEHIND * best)
                {
                    if !candidate.rates.is_empty() && begin.elapsed() >= probe.limit {
                        break 'rounds;
                    }
                    self.set_tuning(candidate.tuning);
                    candidate.rates.push(self.burst(probe, &mut random)?);
                }
            }
            Ok(())
        });
        self.set_tuning(before);
        measured?;
        let tried: Vec<(Tuning, f64)> = candidates.iter().map(|one| (one.tuning, one.best())).collect();
        let slice_bytes = probe.slices.iter().copied().max().unwrap_or(0);
        let tuning = choose(&tried, slice_bytes, self.files().block_bytes()).unwrap_or(before);
        let bandwidth = candidates.iter().find(|one| one.tuning == tuning).map_or(0.0, Candidate::median);
        self.set_tuning(tuning);
        Ok(Profile { tuning, bandwidth, tried })
    }

    /// Reads an expert into each slot; returns bytes of slices a second. The slots are free afterwards.
    fn burst(&mut self, probe: &Probe<'_>, random: &mut Random) -> Result<f64, Error> {
        let most = BURST_BYTES / probe.slices.len().max(1);
        let slices: Vec<usize> = probe.slices.iter().map(|&bytes| bytes.min(most)).collect();
        let expert_bytes: usize = slices.iter().sum();
        let count = (BURST_BYTES / expert_bytes.max(1)).min(probe.slots.len());
        let experts: Vec<(SlotId, Vec<Slice>)> =
            probe.slots[..count].iter().map(|&slot| (slot, self.anywhere(&slices, random))).collect();
        let begin = Instant::now();
        let mut asked = Vec::with_capacity(count);
        let mut outcome = experts.iter().try_for_each(|(slot, slices)| {
            asked.push(*slot);
            self.request(*slot, slices, Urgency::Demand)
        });
        if outcome.is_err() {
            asked.pop();
            asked.iter().for_each(|&slot| self.cancel(slot));
        }
        outcome = outcome.and(self.wait_all());
        let seconds = begin.elapsed().as_secs_f64();
        for slot in asked {
            outcome = outcome.and(self.take_error(slot).map_or(Ok(()), Err));
            outcome = outcome.and(self.arena().evict(slot));
        }
        outcome.map(|()| (expert_bytes * count) as f64 / seconds.max(1e-9))
    }

    /// Slices of these lengths at random places, each in a file that is large enough.
    fn anywhere(&self, slices: &[usize], random: &mut Random) -> Vec<Slice> {
        let room = |file: usize, bytes: usize| self.files().get(file)?.identity().bytes.checked_sub(bytes as u64);
        let slice = |&bytes: &usize| {
            let large: Vec<usize> = (0..self.files().len()).filter(|&file| room(file, bytes).is_some()).collect();
            // Where there is none, `request` refuses the slice.
            let file = large.get(random.below(large.len() as u64) as usize).copied().unwrap_or(0);
            // Where GGUF may put a tensor.
            let offset = random.below((room(file, bytes).unwrap_or(0) / 32).max(1)) * 32;
            Slice { file, offset, bytes }
        };
        slices.iter().map(slice).collect()
    }
}

/// Of the tunings whose rate is close to the best, the one with the fewest bytes on the device, but enough to bridge the
/// time between two looks at it.
fn choose(tried: &[(Tuning, f64)], slice_bytes: usize, block_bytes: usize) -> Option<Tuning> {
    let on_device = |tuning: Tuning| tuning.piece_of(slice_bytes, block_bytes) * tuning.depth;
    let best = tried.iter().map(|one| one.1).fold(0.0, f64::max);
    let close = || tried.iter().copied().filter(|&(_, rate)| rate > 0.0 && rate >= CLOSE * best);
    let bridging = |&(tuning, _): &(Tuning, f64)| on_device(tuning) as f64 >= BRIDGED.as_secs_f64() * best;
    // At equal bytes, large reads: each costs computing time.
    let order = |&(tuning, _): &(Tuning, f64)| (on_device(tuning), std::cmp::Reverse(tuning.piece_bytes));
    close().filter(bridging).min_by_key(order).or_else(|| close().max_by_key(order)).map(|chosen| chosen.0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_shallowest_of_the_fast_is_chosen_that_bridges_two_milliseconds() {
        let tuning = |piece_kib: usize, depth| Tuning { piece_bytes: piece_kib << 10, depth };
        let choose = |tried: &[(Tuning, f64)]| choose(tried, 1_622_016, 512);
        // 2 GB/s for 2 ms are 4 MB: two whole slices are too few, and 4 reads of 256 KiB too slow besides.
        let tried = [
            (tuning(256, 4), 0.8e9),
            (tuning(4096, 2), 2.0e9),
            (tuning(4096, 4), 1.95e9),
            (tuning(4096, 64), 2.05e9),
            (tuning(1024, 8), 1.95e9),
            (tuning(256, 64), 1.96e9),
        ];
        assert_eq!(choose(&tried), Some(tuning(4096, 4)));
        // A device that wants depth gets it; one where nothing bridges gets the most of what is fast.
        assert_eq!(choose(&[(tuning(4096, 4), 1e9), (tuning(256, 64), 3e9)]), Some(tuning(256, 64)));
        assert_eq!(choose(&[(tuning(4096, 4), 9e9), (tuning(4096, 8), 9e9)]), Some(tuning(4096, 8)));
        assert_eq!(choose(&[(tuning(4096, 4), 0.0)]), None);
    }

    #[test]
    fn pieces_are_even_whole_blocks_and_cover_the_window() {
        let tuning = Tuning { piece_bytes: 256 << 10, depth: 1 };
        for (window, block) in
            [(1_626_112, 4096), (4096, 4096), (512, 512), (300_032, 512), (90, 4096), (262_144, 4096)]
        {
            let piece = tuning.piece_of(window, block);
            assert_eq!(piece % block, 0);
            assert!(piece <= (256 << 10) && piece > 0, "{piece}");
            assert_eq!(window.div_ceil(piece), window.div_ceil(256 << 10));
        }
        assert_eq!(Tuning { piece_bytes: 0, depth: 1 }.piece_of(8192, 4096), 4096);
    }
}
