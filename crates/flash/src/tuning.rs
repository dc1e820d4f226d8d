//! How reads are cut and how many are on the device at once, and the short probe that chooses both for a device.
//!
//! The probe reads as the engine will: bursts of whole experts at random places, drained before the next. All candidates
//! take turns; after each round the slower half is left out, so that most of the time goes to those that are close.

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
    /// What most NVMe drives are close to their best with.
    fn default() -> Tuning {
        Tuning { piece_bytes: 512 << 10, depth: 64 }
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
    /// Slots to read into, free ones; as many experts are read at once.
    pub slots: &'a [SlotId],
    /// How long it may take. A burst that has begun is finished.
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
    /// Its rate: bytes of slices a second, in drained bursts.
    pub bandwidth: f64,
    /// Every tuning that was tried, with its median rate.
    pub tried: Vec<(Tuning, f64)>,
}

const PIECES: [usize; 4] = [128 << 10, 256 << 10, 512 << 10, 2 << 20];
const DEPTHS: [usize; 3] = [8, 32, 128];

struct Candidate {
    tuning: Tuning,
    rates: Vec<f64>,
}

impl Candidate {
    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(0.0)
    }
}

impl Fetcher {
    /// Tries depths and splits for at most `probe.limit`, and keeps to the best. The slots are free afterwards.
    ///
    /// # Errors
    /// A read fails, a slot is in use or too small, or no file is as large as a slice.
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
            let mut running = candidates.len();
            'rounds: loop {
                for candidate in &mut candidates[..running] {
                    if begin.elapsed() >= probe.limit {
                        break 'rounds;
                    }
                    self.set_tuning(candidate.tuning);
                    candidate.rates.push(self.burst(probe, &mut random)?);
                }
                candidates[..running].sort_by(|one, other| other.median().total_cmp(&one.median()));
                running = running.div_ceil(2).max(2);
            }
            Ok(())
        });
        self.set_tuning(before);
        measured?;
        let tried: Vec<(Tuning, f64)> = candidates.iter().map(|one| (one.tuning, one.median())).collect();
        // More rounds mean more trust: the best is among those that were measured most.
        let rounds = candidates.iter().map(|one| one.rates.len()).max().unwrap_or(0);
        let best = candidates
            .iter()
            .filter(|one| one.rates.len() + 1 >= rounds && !one.rates.is_empty())
            .max_by(|one, other| one.median().total_cmp(&other.median()));
        let (tuning, bandwidth) = best.map_or((before, 0.0), |best| (best.tuning, best.median()));
        self.set_tuning(tuning);
        Ok(Profile { tuning, bandwidth, tried })
    }

    /// Reads an expert into each slot; returns bytes of slices a second.
    fn burst(&mut self, probe: &Probe<'_>, random: &mut Random) -> Result<f64, Error> {
        let begin = Instant::now();
        for &slot in probe.slots {
            let mut slices = [Slice { file: 0, offset: 0, bytes: 0 }; crate::MAX_SLICES];
            let count = probe.slices.len().min(slices.len());
            for (slice, &bytes) in slices.iter_mut().zip(probe.slices) {
                let file = random.below(self.files().len().max(1) as u64) as usize;
                let file_bytes = self.files().get(file).map_or(0, |file| file.identity().bytes);
                // Where GGUF may put a tensor. A slice larger than its file is refused by `request`.
                let offset = random.below((file_bytes.saturating_sub(bytes as u64) / 32).max(1)) * 32;
                *slice = Slice { file, offset, bytes };
            }
            self.request(slot, &slices[..count], Urgency::Demand)?;
        }
        self.submit();
        self.wait_all()?;
        let seconds = begin.elapsed().as_secs_f64();
        for &slot in probe.slots {
            if let Some(error) = self.take_error(slot) {
                return Err(error);
            }
            self.arena().evict(slot)?;
        }
        Ok((probe.slices.iter().sum::<usize>() * probe.slots.len()) as f64 / seconds.max(1e-9))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

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
