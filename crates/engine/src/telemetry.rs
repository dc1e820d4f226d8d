//! What a step costs besides computing: experts fetched, bytes read, time spent waiting.

use std::ops::Sub;
use std::time::Duration;

/// Traffic between flash and the expert slots, summed since the model was loaded: what was read for loading is not in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Experts read from flash.
    pub fetches: u64,
    /// Bytes read from flash, the blocks around slices included.
    pub flash_bytes: u64,
    /// Of those, the bytes of demand reads. What was begun in the background, on a guess or for a warm start, is none, also if it was
    /// chosen before it had come.
    pub demand_bytes: u64,
    /// Bytes of experts that were asked for on a guess.
    pub prefetch_bytes: u64,
    /// Of those, bytes of experts that were then chosen.
    pub prefetch_useful_bytes: u64,
    /// Experts that were chosen while they were being read, or had just been read, on a guess or for another session.
    pub late_hits: u64,
    /// Time that computing waited for flash.
    pub waited: Duration,
    /// Time with demand reads on the device.
    pub flash_busy: Duration,
}

impl Sub for Traffic {
    type Output = Traffic;

    /// What came after `earlier`.
    fn sub(self, earlier: Traffic) -> Traffic {
        Traffic {
            fetches: self.fetches - earlier.fetches,
            flash_bytes: self.flash_bytes - earlier.flash_bytes,
            demand_bytes: self.demand_bytes - earlier.demand_bytes,
            prefetch_bytes: self.prefetch_bytes - earlier.prefetch_bytes,
            prefetch_useful_bytes: self.prefetch_useful_bytes - earlier.prefetch_useful_bytes,
            late_hits: self.late_hits - earlier.late_hits,
            waited: self.waited - earlier.waited,
            flash_busy: self.flash_busy - earlier.flash_busy,
        }
    }
}
