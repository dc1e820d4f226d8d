//! The expert store: the slots of all layers, what is read into them, and in which order a step's experts are computed.
//!
//! Per layer and step ([`ExpertStore::begin`] to [`ExpertStore::finish_group`]): the experts that the tokens chose are put in an order,
//! first those that are resident and nobody will need in this layer afterwards (their slots become free), then the other
//! resident ones, then those on their way, then the absent by ascending id. Reads of absent ones start at once, as far as
//! there is room for them, and more as slots become free; so flash works while the resident ones are computed. What a session's
//! logical cache holds after the step takes a slot of the layer, the rest passes through staging slots.
//!
//! A long prompt needs nearly every expert of every layer, so [`ExpertStore::read_ahead`] asks for those of the next layer before its
//! router has chosen: into slots that are empty, and into staging.
//!
//! The order of computing has no influence on results: each token adds its experts in ascending id (NUMBERS.md).
//!
//! Here: the slots and who is in them. `queue` is the order, `step` a layer's part of a step, `ahead` what is read before a router has asked.

mod ahead;
mod queue;
mod step;

pub(crate) use queue::Group;

use super::catalogue::LayerCatalogue;
use super::layer::LayerSlots;
use super::staging::Staging;
use super::{Layouts, MoeLayer, PROJECTIONS, PinnedExpert, Projection};
use crate::Error;
use crate::telemetry::Traffic;
use moce_flash::{Arena, Fetcher, SlotClass, SlotId, SlotState, Stats, Urgency};
use moce_kernels::Cpu;
use queue::{Presence, Queue};
use std::sync::Arc;
use step::ORDER_FROM_TOKENS;

const IN_USE: &str = "experts are used between their request and the end of their group";

/// How the store is set up.
pub(crate) struct StoreOptions<'a> {
    /// The layers, and how many slots each gets.
    pub(crate) layers: &'a [LayerCatalogue],
    pub(crate) slots: &'a [usize],
    /// Slots that any expert may pass through.
    pub(crate) staging: usize,
    /// The largest block of the model's files.
    pub(crate) block_bytes: usize,
}

impl StoreOptions<'_> {
    /// Slot classes of the arena: one a layer, staging last.
    pub(crate) fn classes(&self) -> Vec<SlotClass> {
        let layers = self.layers.iter().zip(self.slots);
        let mut classes: Vec<SlotClass> =
            layers.map(|(layer, &count)| SlotClass { bytes: layer.slot_bytes(self.block_bytes), count }).collect();
        let largest = classes.iter().map(|class| class.bytes).max().unwrap_or(0);
        classes.push(SlotClass { bytes: largest, count: self.staging });
        classes
    }
}

/// The routed experts of a model.
pub(crate) struct ExpertStore {
    arena: Arc<Arena>,
    fetcher: Option<Fetcher>,
    layers: Vec<LayerSlots>,
    staging: Staging,
    /// The step at hand.
    queue: Queue,
    /// Counts layers of steps: the clock of the least recently used.
    time: u64,
    /// Whether what is on its way was guessed.
    guessed: bool,
    /// Whether experts may have landed in slots of their own layers since the files were last looked at.
    unchecked: bool,
    traffic: Traffic,
    /// What of it was for loading.
    loading: Traffic,
}

impl ExpertStore {
    /// A store without an expert. `fetcher` reads the model's files into the arena of `options.classes()`; a model without experts has none.
    pub(crate) fn new(options: &StoreOptions<'_>, arena: Arc<Arena>, fetcher: Option<Fetcher>) -> ExpertStore {
        let layers = options.layers.iter().enumerate();
        let layers: Vec<LayerSlots> =
            layers.map(|(class, layer)| LayerSlots::new(layer.clone(), arena.slots(class))).collect();
        ExpertStore {
            staging: Staging::new(arena.slots(options.layers.len())),
            queue: Queue::new(layers.iter().map(|layer| layer.catalogue.count).max().unwrap_or(0)),
            layers,
            arena,
            fetcher,
            time: 0,
            guessed: false,
            unchecked: false,
            traffic: Traffic::default(),
            loading: Traffic::default(),
        }
    }

    /// What has been read and waited for since loading was done.
    pub(crate) fn traffic(&self) -> Traffic {
        let Stats { bytes, demand_bytes, busy, .. } =
            self.fetcher.as_ref().map(|fetcher| fetcher.stats()).unwrap_or_default();
        let all = Traffic { flash_bytes: bytes, demand_bytes, flash_busy: busy, ..self.traffic };
        all - self.loading
    }

    /// A session took an expert into its logical cache.
    pub(crate) fn hold(&mut self, layer: MoeLayer, expert: u32) {
        self.layers[layer.0].hold(expert);
    }

    /// A session let an expert go.
    pub(crate) fn release(&mut self, layer: MoeLayer, expert: u32) {
        self.layers[layer.0].release(expert);
    }

    /// Experts that a session holds.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        let held = |layer: &LayerSlots| (0..layer.catalogue.count as u32).filter(|&id| layer.is_held(id)).count();
        self.layers.iter().map(held).sum()
    }

    /// An error if a file of the model is another than when it was opened.
    pub(crate) fn check_files(&self) -> Result<(), Error> {
        Ok(self.fetcher.as_ref().map_or(Ok(()), |fetcher| fetcher.files().check_unchanged())?)
    }

    /// Reads every expert that has a slot of its own, layer by layer, and puts it into kernel order: for layers that hold all. Loading is
    /// done then.
    pub(crate) fn preload(&mut self, cpu: &Cpu) -> Result<(), Error> {
        const ALL: [Projection; PROJECTIONS] = [Projection::Gate, Projection::Up, Projection::Down];
        for layer in (0..self.layers.len()).map(MoeLayer) {
            let count = self.layers[layer.0].catalogue.count;
            if self.layers[layer.0].len() < count {
                continue;
            }
            let all: Vec<u32> = (0..count as u32).collect();
            self.begin(layer, &all)?;
            while let Some(group) = self.next_group(layer, 1) {
                self.wait(layer, &group, Projection::Down)?;
                self.put_in_order(layer, &group, &ALL, cpu, |_| ORDER_FROM_TOKENS)?;
                self.finish_group(layer, group)?;
            }
        }
        self.loading = self.traffic();
        Ok(())
    }

    /// Keeps flash busy: starts reads that waited for others to come back. To be called every millisecond or two while computing.
    pub(crate) fn poll(&mut self) -> Result<(), Error> {
        match &mut self.fetcher {
            Some(fetcher) if !fetcher.is_idle() => Ok(fetcher.poll()?),
            _ => Ok(()),
        }
    }

    /// Keeps an expert in its slot while it is computed with.
    pub(crate) fn pin(&self, layer: MoeLayer, expert: u32) -> Result<PinnedExpert<'_>, Error> {
        let pin = self.arena.pin(self.slot(layer, expert))?;
        Ok(PinnedExpert { pin, layouts: *self.layouts(layer, expert), catalogue: &self.layers[layer.0].catalogue })
    }

    /// Asks for an expert into a slot that has just been given to it.
    fn fetch(&mut self, layer: MoeLayer, expert: u32, slot: SlotId, urgency: Urgency) -> Result<(), Error> {
        let slots = &mut self.layers[layer.0];
        let fetcher = self.fetcher.as_mut().expect("a model with absent experts has a fetcher");
        if let Err(error) = fetcher.request(slot, &slots.catalogue.slices(expert), urgency) {
            // The slot holds what it held, which must not pass for this expert.
            slots.forget(expert);
            self.staging.release(layer, expert, fetcher);
            return Err(error.into());
        }
        self.traffic.fetches += 1;
        Ok(())
    }

    /// Starts what was asked for.
    fn submit(&mut self) {
        if let Some(fetcher) = &mut self.fetcher {
            fetcher.submit();
        }
    }

    /// Gives an expert a slot of its layer: an empty one or one that nobody needs; with `force` also one that another session holds.
    fn own_slot(&mut self, layer: MoeLayer, expert: u32, force: bool) -> Option<SlotId> {
        let slots = &mut self.layers[layer.0];
        let index = slots.victim(force, &self.arena, self.fetcher.as_ref())?;
        let slot = slots.assign(index, expert, self.time);
        if let Some(fetcher) = &mut self.fetcher {
            // If something was to be read into it, that has not begun.
            fetcher.cancel(slot);
        }
        Some(slot)
    }

    /// Gives an expert a slot of its layer that has none.
    fn empty_slot(&mut self, layer: MoeLayer, expert: u32) -> Option<SlotId> {
        let slots = &mut self.layers[layer.0];
        slots.empty(&self.arena).map(|index| slots.assign(index, expert, self.time))
    }

    /// Gives an expert a staging slot, if one is vacant.
    fn staging_slot(&mut self, layer: MoeLayer, expert: u32) -> Option<SlotId> {
        self.staging.assign(layer, expert, self.layers[layer.0].catalogue.layouts(), &self.arena)
    }

    /// Whether an expert has a slot, whatever became of its reads.
    fn has_place(&self, layer: MoeLayer, expert: u32) -> bool {
        self.layers[layer.0].find(expert).is_some() || self.staging.find(layer, expert).is_some()
    }

    fn presence(&self, layer: MoeLayer, expert: u32) -> Presence {
        let own = self.layers[layer.0].find(expert).map(|slot| self.arena.state(slot));
        let staged = self.staging.find(layer, expert).map(|staged| self.arena.state(staged.id));
        match (own, staged) {
            (Some(SlotState::Filled), _) if self.layers[layer.0].is_held(expert) => Presence::Resident,
            (Some(SlotState::Filled), _) => Presence::Passing,
            (Some(SlotState::InFlight), _) | (_, Some(SlotState::Filled | SlotState::InFlight)) => Presence::Coming,
            _ => Presence::Absent,
        }
    }

    fn slot(&self, layer: MoeLayer, expert: u32) -> SlotId {
        let staged = || self.staging.find(layer, expert).map(|staged| staged.id);
        self.layers[layer.0].find(expert).or_else(staged).expect(IN_USE)
    }

    fn layouts(&self, layer: MoeLayer, expert: u32) -> &Layouts {
        let staged = || self.staging.find(layer, expert).map(|staged| &staged.layouts);
        self.layers[layer.0].layouts(expert).or_else(staged).expect(IN_USE)
    }

    fn layouts_mut(&mut self, layer: MoeLayer, expert: u32) -> &mut Layouts {
        let staged = self.staging.find_mut(layer, expert).map(|staged| &mut staged.layouts);
        self.layers[layer.0].layouts_mut(expert).or(staged).expect(IN_USE)
    }
}

#[cfg(test)]
mod tests;
