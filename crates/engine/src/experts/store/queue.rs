//! The experts of a layer's part of a step, in the order of computing. It knows numbers only: slots and reads are the store's matter.

use std::ops::Range;

/// Experts that are computed together; indices into the step's queue.
pub(crate) type Group = Range<usize>;

/// Where an expert is when a layer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Whole, in a slot of its layer, and no session will need it there afterwards.
    Passing,
    /// Whole, in a slot of its layer.
    Resident,
    /// On its way, or in a staging slot.
    Coming,
    /// To be read.
    Absent,
}

/// The queue: passing, resident, coming, absent, and in each of these sections by ascending id.
#[derive(Debug)]
pub(super) struct Queue {
    experts: Vec<u32>,
    /// Ends of the first three sections.
    passing: usize,
    resident: usize,
    coming: usize,
    /// How far the queue has been requested.
    pub(super) requested: usize,
    /// How far it has been computed.
    pub(super) computed: usize,
}

impl Queue {
    /// An empty queue for layers of at most `most` experts.
    pub(super) fn new(most: usize) -> Queue {
        let experts = Vec::with_capacity(most);
        Queue { experts, passing: 0, resident: 0, coming: 0, requested: 0, computed: 0 }
    }

    /// Starts a layer that needs these experts, ascending.
    pub(super) fn begin(&mut self, needed: &[u32], presence: impl Fn(u32) -> Presence) {
        self.clear();
        for (section, end) in [
            (Presence::Passing, Some(&mut self.passing)),
            (Presence::Resident, Some(&mut self.resident)),
            (Presence::Coming, Some(&mut self.coming)),
            (Presence::Absent, None),
        ] {
            self.experts.extend(needed.iter().copied().filter(|&expert| presence(expert) == section));
            if let Some(end) = end {
                *end = self.experts.len();
            }
        }
        self.requested = self.coming;
    }

    /// Nothing is to be computed.
    pub(super) fn clear(&mut self) {
        self.experts.clear();
        (self.passing, self.resident, self.coming, self.requested, self.computed) = (0, 0, 0, 0, 0);
    }

    pub(super) fn experts(&self) -> &[u32] {
        &self.experts
    }

    pub(super) fn ids(&self, group: &Group) -> &[u32] {
        &self.experts[group.clone()]
    }

    /// Those that were on their way when the layer began.
    pub(super) fn coming(&self) -> Range<usize> {
        self.resident..self.coming
    }

    /// Those that were absent.
    pub(super) fn absent(&self) -> Range<usize> {
        self.coming..self.experts.len()
    }

    /// Whether an index is of the first two sections.
    pub(super) fn was_resident(&self, index: usize) -> bool {
        index < self.resident
    }

    /// Whether every expert has been asked for.
    pub(super) fn is_requested(&self) -> bool {
        self.requested == self.experts.len()
    }

    /// The next group, at most `most` experts of one section; `landed` says which are whole by now.
    pub(super) fn next_group(&self, most: usize, landed: impl Fn(u32) -> bool) -> Option<Group> {
        let start = self.computed;
        let end = match start {
            _ if start < self.passing => self.passing,
            _ if start < self.resident => self.resident,
            _ if start < self.experts.len() => {
                // The next one, and those behind it in its section that are whole already.
                let section = if start < self.coming { self.coming } else { self.requested };
                start + 1 + (start + 1..section).take_while(|&index| landed(self.experts[index])).count()
            }
            _ => return None,
        };
        Some(start..end.min(start + most))
    }
}
