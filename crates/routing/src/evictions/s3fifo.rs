//! `s3fifo` (Yang et al., SOSP 2023), as METHOD.md adapts it to whole tokens: a small queue for newcomers, a main queue for what
//! was touched again, and a ghost list of ids that left the small queue.
//!
//! Invariants: a cached expert is in exactly one of small and main; no cached expert is in the ghost list; an expert of the
//! token being routed is passed over where it stands.

use super::{Eviction, Observed};
use crate::Error;
use crate::bits::Bits;
use crate::order::Order;
use crate::scores::check_ids;
use crate::state::EvictionState;

/// A touch adds 1 up to this.
const HIGHEST_FREQUENCY: u8 = 3;

/// The three queues and each cached expert's frequency.
#[derive(Debug, Clone)]
pub(crate) struct S3Fifo {
    small: Order,
    main: Order,
    ghost: Order,
    frequency: Vec<u8>,
    small_size: usize,
    ghost_size: usize,
}

impl S3Fifo {
    pub(super) fn new(experts: usize, capacity: usize) -> Self {
        Self {
            small: Order::new(experts),
            main: Order::new(experts),
            ghost: Order::new(experts),
            frequency: vec![0; experts],
            small_size: (capacity / 10).max(1),
            ghost_size: capacity,
        }
    }

    pub(crate) fn state(&self) -> EvictionState {
        let with_frequency =
            |queue: &Order| queue.iter().map(|expert| (expert, self.frequency[expert as usize])).collect();
        EvictionState::S3Fifo {
            small: with_frequency(&self.small),
            main: with_frequency(&self.main),
            ghost: self.ghost.iter().collect(),
        }
    }

    /// Takes over saved queues, which must hold exactly the experts of `cached`; on an error nothing has changed.
    pub(crate) fn restore(
        &mut self,
        layer: usize,
        cached: &[u32],
        small: &[(u32, u8)],
        main: &[(u32, u8)],
        ghost: &[u32],
    ) -> Result<(), Error> {
        let what = "the saved state's queues";
        let queued: Vec<u32> =
            small.iter().chain(main).map(|(expert, _)| *expert).chain(ghost.iter().copied()).collect();
        check_ids(layer, what, &queued, self.frequency.len())?;
        let resident = &queued[..small.len() + main.len()];
        let frequencies = || small.iter().chain(main).map(|(_, frequency)| *frequency);
        let problem = if resident.len() != cached.len() || resident.iter().any(|expert| !cached.contains(expert)) {
            "they do not hold the cached experts".to_owned()
        } else if ghost.len() > self.ghost_size {
            format!("{} ids in a ghost list of {}", ghost.len(), self.ghost_size)
        } else if let Some(frequency) = frequencies().find(|&frequency| frequency > HIGHEST_FREQUENCY) {
            format!("a frequency of {frequency}, expected 0 to {HIGHEST_FREQUENCY}")
        } else {
            self.clear();
            small.iter().for_each(|(expert, _)| self.small.push_back(*expert));
            main.iter().for_each(|(expert, _)| self.main.push_back(*expert));
            ghost.iter().for_each(|expert| self.ghost.push_back(*expert));
            small.iter().chain(main).for_each(|(expert, frequency)| self.frequency[*expert as usize] = *frequency);
            return Ok(());
        };
        Err(Error::Experts { layer, what, problem })
    }

    fn remember(&mut self, expert: u32) {
        self.ghost.push_back(expert);
        if self.ghost.len() > self.ghost_size {
            let oldest = self.ghost.iter().next().expect("longer than its size");
            self.ghost.remove(oldest);
        }
    }
}

impl Eviction for S3Fifo {
    fn observe(&mut self, _token: &Observed<'_>) {}

    fn touch(&mut self, expert: u32, cached: bool) {
        let frequency = &mut self.frequency[expert as usize];
        if cached {
            *frequency = (*frequency + 1).min(HIGHEST_FREQUENCY);
            return;
        }
        *frequency = 0;
        if self.ghost.contains(expert) {
            self.ghost.remove(expert);
            self.main.push_back(expert);
        } else {
            self.small.push_back(expert);
        }
    }

    fn victim(&mut self, _recency: &Order, chosen: &Bits) -> u32 {
        let head = |queue: &Order| queue.iter().find(|&expert| !chosen.contains(expert));
        loop {
            let (small, main) = (head(&self.small), head(&self.main));
            // The queue whose turn it is may hold nothing but the token's own experts: then the other one gives.
            let from_small = if self.small.len() >= self.small_size { small.is_some() } else { main.is_none() };
            if from_small {
                let expert = small.expect("a cache over its capacity holds more than the token's K experts");
                self.small.remove(expert);
                if self.frequency[expert as usize] <= 1 {
                    self.remember(expert);
                    return expert;
                }
                self.frequency[expert as usize] = 0;
                self.main.push_back(expert);
            } else {
                let expert = main.expect("a cache over its capacity holds more than the token's K experts");
                self.main.remove(expert);
                if self.frequency[expert as usize] == 0 {
                    return expert;
                }
                self.frequency[expert as usize] -= 1;
                self.main.push_back(expert);
            }
        }
    }

    fn clear(&mut self) {
        self.small.clear();
        self.main.clear();
        self.ghost.clear();
        self.frequency.fill(0);
    }
}
