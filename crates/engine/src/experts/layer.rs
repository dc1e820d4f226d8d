//! Which expert is in which slot of a layer, and which slot is given up next. Bytes and reads are the store's matter.

use super::Layouts;
use super::catalogue::LayerCatalogue;
use moce_flash::{Arena, Fetcher, SlotId, SlotState};

/// The slots of one layer.
#[derive(Debug)]
pub(super) struct LayerSlots {
    pub(super) catalogue: LayerCatalogue,
    slots: Vec<Slot>,
    /// Index into `slots` of each expert, if it has one.
    slot_of: Vec<Option<u32>>,
    /// How many sessions have each expert in their logical cache.
    held: Vec<u32>,
    /// Whether an expert waits to be computed in the step at hand, and must stay until then.
    pub(super) waiting: Vec<bool>,
}

#[derive(Debug)]
struct Slot {
    id: SlotId,
    expert: Option<u32>,
    layouts: Layouts,
    /// The time of the last use; times only grow.
    used: u64,
}

impl LayerSlots {
    pub(super) fn new(catalogue: LayerCatalogue, slots: impl Iterator<Item = SlotId>) -> LayerSlots {
        let layouts = catalogue.layouts();
        let slots = slots.map(|id| Slot { id, expert: None, layouts, used: 0 }).collect();
        let count = catalogue.count;
        LayerSlots { catalogue, slots, slot_of: vec![None; count], held: vec![0; count], waiting: vec![false; count] }
    }

    /// How many slots there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slot of an expert.
    pub(super) fn find(&self, expert: u32) -> Option<SlotId> {
        self.slot_of[expert as usize].map(|index| self.slots[index as usize].id)
    }

    /// How an expert that has a slot stands in it.
    pub(super) fn layouts(&self, expert: u32) -> Option<&Layouts> {
        self.slot_of[expert as usize].map(|index| &self.slots[index as usize].layouts)
    }

    /// See [`LayerSlots::layouts`].
    pub(super) fn layouts_mut(&mut self, expert: u32) -> Option<&mut Layouts> {
        self.slot_of[expert as usize].map(|index| &mut self.slots[index as usize].layouts)
    }

    /// The slot of an expert, to be exchanged for another of the same size.
    pub(super) fn id_mut(&mut self, expert: u32) -> Option<&mut SlotId> {
        self.slot_of[expert as usize].map(|index| &mut self.slots[index as usize].id)
    }

    /// Notes a use.
    pub(super) fn touch(&mut self, expert: u32, time: u64) {
        if let Some(index) = self.slot_of[expert as usize] {
            self.slots[index as usize].used = time;
        }
    }

    /// A session took an expert into its logical cache, or let it go.
    pub(super) fn hold(&mut self, expert: u32) {
        self.held[expert as usize] += 1;
    }

    /// See [`LayerSlots::hold`].
    pub(super) fn release(&mut self, expert: u32) {
        self.held[expert as usize] = self.held[expert as usize].saturating_sub(1);
    }

    /// Whether any session has the expert in its logical cache.
    pub(super) fn is_held(&self, expert: u32) -> bool {
        self.held[expert as usize] > 0
    }

    /// A slot without an expert, into which nothing is being read.
    pub(super) fn empty(&self, arena: &Arena) -> Option<usize> {
        self.slots.iter().position(|slot| slot.expert.is_none() && arena.state(slot.id) != SlotState::InFlight)
    }

    /// The slot to give up for another expert: an empty one, else the least recently used of those whose expert no session holds, else,
    /// if `force`, the least recently used of all. Never one whose expert still waits to be computed, or is being read; one whose reads
    /// have not begun may be given up, and they with it.
    pub(super) fn victim(&self, force: bool, arena: &Arena, fetcher: Option<&Fetcher>) -> Option<usize> {
        let is_read = |slot: SlotId| {
            arena.state(slot) == SlotState::InFlight && fetcher.is_none_or(|fetcher| !fetcher.is_queued(slot))
        };
        let candidates = self.slots.iter().enumerate().filter(|(_, slot)| {
            slot.expert.is_none_or(|expert| !self.waiting[expert as usize] && (force || !self.is_held(expert)))
                && !is_read(slot.id)
        });
        let held = |slot: &Slot| slot.expert.is_some_and(|expert| self.is_held(expert));
        candidates.min_by_key(|(_, slot)| (held(slot), slot.expert.is_some(), slot.used)).map(|(index, _)| index)
    }

    /// Gives a slot to another expert; what it held is gone.
    pub(super) fn assign(&mut self, index: usize, expert: u32, time: u64) -> SlotId {
        let slot = &mut self.slots[index];
        if let Some(old) = slot.expert.replace(expert) {
            self.slot_of[old as usize] = None;
        }
        slot.layouts = self.catalogue.layouts();
        slot.used = time;
        self.slot_of[expert as usize] = Some(index as u32);
        slot.id
    }

    /// Forgets an expert whose fetch failed.
    pub(super) fn forget(&mut self, expert: u32) {
        if let Some(index) = self.slot_of[expert as usize].take() {
            self.slots[index as usize].expert = None;
        }
    }

    /// Forgets every expert that is not whole in its slot.
    pub(super) fn forget_absent(&mut self, arena: &Arena) {
        for expert in 0..self.slot_of.len() as u32 {
            if self.find(expert).is_some_and(|slot| arena.state(slot) != SlotState::Filled) {
                self.forget(expert);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::ProjectionShape;
    use moce_flash::SlotClass;
    use moce_kernels::Layout;
    use moce_quant::Format;

    fn layer(experts: usize, slots: usize) -> (LayerSlots, Arena) {
        let layout = Layout::Plain;
        let projection = ProjectionShape {
            format: Format::F32,
            rows: 1,
            columns: 1,
            layout,
            bytes: 4,
            part: 0,
            offset: 0,
            stride: 4,
        };
        let arena = Arena::reserve(&[SlotClass { bytes: 64, count: slots }]).unwrap();
        (
            LayerSlots::new(LayerCatalogue { block: 0, count: experts, projections: [projection; 3] }, arena.slots(0)),
            arena,
        )
    }

    #[test]
    fn empty_slots_go_first_then_the_least_recent_that_nobody_holds() {
        let (mut layer, arena) = layer(8, 3);
        for (time, expert) in [(1, 5), (2, 6), (3, 7)] {
            let index = layer.victim(false, &arena, None).unwrap();
            layer.assign(index, expert, time);
        }
        layer.touch(5, 4);
        layer.hold(6);
        // 6 is the least recent, but held; 7 comes next.
        let index = layer.victim(false, &arena, None).unwrap();
        layer.assign(index, 0, 5);
        assert_eq!(layer.find(7), None);
        assert!(layer.find(6).is_some() && layer.find(5).is_some() && layer.find(0).is_some());
    }

    #[test]
    fn held_and_waiting_experts_stay_unless_forced() {
        let (mut layer, arena) = layer(4, 2);
        for expert in [0, 1] {
            let index = layer.victim(false, &arena, None).unwrap();
            layer.assign(index, expert, expert.into());
            layer.hold(expert);
        }
        assert_eq!(layer.victim(false, &arena, None), None);
        layer.waiting[0] = true;
        let index = layer.victim(true, &arena, None).unwrap();
        layer.assign(index, 2, 9);
        assert!(layer.find(0).is_some() && layer.find(1).is_none());
        layer.waiting[2] = true;
        assert_eq!(layer.victim(true, &arena, None), None);
    }

    #[test]
    fn a_forgotten_expert_leaves_an_empty_slot() {
        let (mut layer, arena) = layer(4, 1);
        layer.assign(0, 3, 1);
        layer.forget(3);
        assert_eq!((layer.find(3), layer.victim(false, &arena, None)), (None, Some(0)));
    }
}
