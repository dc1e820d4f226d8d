//! Staging slots: any expert of any layer may pass through one. A demand read thus never waits for a guess, and experts that no
//! session keeps push nobody out.

use super::{Layouts, MoeLayer};
use moce_flash::{Arena, Fetcher, SlotId, SlotState};

/// The staging slots of a store.
#[derive(Debug)]
pub(super) struct Staging {
    slots: Vec<StagingSlot>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct StagingSlot {
    pub(super) id: SlotId,
    pub(super) layouts: Layouts,
    expert: Option<(MoeLayer, u32)>,
}

impl Staging {
    pub(super) fn new(slots: impl Iterator<Item = SlotId>) -> Staging {
        Staging { slots: slots.map(|id| StagingSlot { id, layouts: Layouts::default(), expert: None }).collect() }
    }

    /// The slot that an expert is in, or on its way to.
    pub(super) fn find(&self, layer: MoeLayer, expert: u32) -> Option<&StagingSlot> {
        self.slots.iter().find(|slot| slot.expert == Some((layer, expert)))
    }

    /// See [`Staging::find`].
    pub(super) fn find_mut(&mut self, layer: MoeLayer, expert: u32) -> Option<&mut StagingSlot> {
        self.slots.iter_mut().find(|slot| slot.expert == Some((layer, expert)))
    }

    /// Gives a vacant slot to an expert that stands in the file as `layouts` say, if there is one. A slot whose reads have been given up is vacant when they are back.
    pub(super) fn assign(&mut self, layer: MoeLayer, expert: u32, layouts: Layouts, arena: &Arena) -> Option<SlotId> {
        let vacant = |slot: &&mut StagingSlot| slot.expert.is_none() && arena.state(slot.id) != SlotState::InFlight;
        let slot = self.slots.iter_mut().find(vacant)?;
        (slot.expert, slot.layouts) = (Some((layer, expert)), layouts);
        Some(slot.id)
    }

    /// A slot whose reads have been given up and are not back yet.
    pub(super) fn given_up(&self, arena: &Arena) -> Option<SlotId> {
        let mut ids = self.slots.iter().filter(|slot| slot.expert.is_none()).map(|slot| slot.id);
        ids.find(|&id| arena.state(id) == SlotState::InFlight)
    }

    /// Gives up what an expert's slot holds, or is being filled with.
    pub(super) fn release(&mut self, layer: MoeLayer, expert: u32, fetcher: &mut Fetcher) {
        if let Some(slot) = self.find_mut(layer, expert) {
            slot.expert = None;
            let id = slot.id;
            discard(id, fetcher);
        }
    }

    /// Gives up what could not be read, so that whoever needs it asks anew.
    pub(super) fn drop_failed(&mut self, fetcher: &mut Fetcher, arena: &Arena) {
        for slot in self.slots.iter_mut().filter(|slot| arena.state(slot.id) == SlotState::Failed) {
            slot.expert = None;
            discard(slot.id, fetcher);
        }
    }

    /// Gives up all that is not wanted.
    pub(super) fn retain(&mut self, fetcher: &mut Fetcher, wanted: impl Fn(MoeLayer, u32) -> bool) {
        for slot in &mut self.slots {
            if slot.expert.is_some_and(|(layer, expert)| !wanted(layer, expert)) {
                slot.expert = None;
                discard(slot.id, fetcher);
            }
        }
    }
}

impl StagingSlot {
    /// Takes another slot of the same size in exchange for this one, whose expert keeps it.
    pub(super) fn exchange(&mut self, other: &mut SlotId) {
        std::mem::swap(&mut self.id, other);
        self.expert = None;
    }
}

/// Ends a fetch that nobody waits for; its error, if it had one, concerns nobody.
fn discard(slot: SlotId, fetcher: &mut Fetcher) {
    fetcher.cancel(slot);
    let _ = fetcher.take_error(slot);
}
