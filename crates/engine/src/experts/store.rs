//! The expert store: the slots of all layers, what is read into them, and in which order a step's experts are computed.
//!
//! Per layer and step ([`ExpertStore::begin`] to [`ExpertStore::finish_group`]): the experts that the tokens chose are put in an order,
//! first those that are resident and nobody will need in this layer afterwards (their slots become free), then the other
//! resident ones, then those on their way, then the absent by ascending id. Reads of absent ones start at once, as far as
//! there is room for them, and more as slots become free; so flash works while the resident ones are computed. What a session's
//! logical cache holds after the step takes a slot of the layer, the rest passes through staging slots.
//!
//! A long prompt needs nearly every expert of every layer, so [`ExpertStore::read_ahead`] asks for those of the next layer before its
//! router has chosen: into slots that are empty or that nobody holds, and into staging.
//!
//! The order of computing has no influence on results: each token adds its experts in ascending id (NUMBERS.md).

use super::catalogue::LayerCatalogue;
use super::layer::LayerSlots;
use super::staging::Staging;
use super::{Layouts, MoeLayer, PROJECTIONS, Projection};
use crate::Error;
use crate::telemetry::Traffic;
use moce_flash::{Arena, Fetcher, Pin, SlotClass, SlotId, SlotState, Urgency};
use moce_kernels::{Cpu, Layout, Matrix};
use std::sync::Arc;
use std::time::Instant;

/// Tokens of an expert from which putting it into kernel order pays at once; below, it is computed as it stands in the file the first
/// time, and ordered when it is used again.
const ORDER_FROM_TOKENS: usize = 4;

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
    /// The step at hand: its layer, and that layer's experts in the order of computing.
    layer: MoeLayer,
    queue: Vec<u32>,
    /// Ends of its sections, in each of which ids ascend: the resident that nobody holds, the other resident ones, those on their way.
    passing: usize,
    resident: usize,
    coming: usize,
    /// How far the queue has been requested, and computed.
    requested: usize,
    computed: usize,
    /// Counts layers of steps: the clock of the least recently used.
    time: u64,
    /// Whether what is on its way was guessed.
    guessed: bool,
    /// Whether experts may have landed in slots of their own layers since the files were last looked at.
    unchecked: bool,
    traffic: Traffic,
}

/// Experts that are computed together; indices into the step's queue.
pub(crate) type Group = std::ops::Range<usize>;

/// Where an expert is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// Whole, in a slot of its layer.
    Resident,
    /// On its way, or in a staging slot.
    Coming,
    Absent,
}

impl ExpertStore {
    /// A store without an expert. `fetcher` reads the model's files into the arena of `options.classes()`; a model without experts has none.
    pub(crate) fn new(options: &StoreOptions<'_>, arena: Arc<Arena>, fetcher: Option<Fetcher>) -> ExpertStore {
        let layers = options.layers.iter().enumerate();
        let layers: Vec<LayerSlots> =
            layers.map(|(class, layer)| LayerSlots::new(layer.clone(), arena.slots(class))).collect();
        ExpertStore {
            staging: Staging::new(arena.slots(options.layers.len())),
            queue: Vec::with_capacity(layers.iter().map(|layer| layer.catalogue.count).max().unwrap_or(0)),
            layer: MoeLayer(0),
            layers,
            arena,
            fetcher,
            passing: 0,
            resident: 0,
            coming: 0,
            requested: 0,
            computed: 0,
            time: 0,
            guessed: false,
            unchecked: false,
            traffic: Traffic::default(),
        }
    }

    /// What has been read and waited for so far.
    pub(crate) fn traffic(&self) -> Traffic {
        let stats = self.fetcher.as_ref().map(|fetcher| fetcher.stats()).unwrap_or_default();
        Traffic { flash_bytes: stats.bytes, flash_busy: stats.busy, ..self.traffic }
    }

    /// A session took an expert into its logical cache.
    pub(crate) fn hold(&mut self, layer: MoeLayer, expert: u32) {
        self.layers[layer.0].hold(expert);
    }

    /// A session let an expert go.
    pub(crate) fn release(&mut self, layer: MoeLayer, expert: u32) {
        self.layers[layer.0].release(expert);
    }

    /// An error if a file of the model is another than when it was opened.
    pub(crate) fn check_files(&self) -> Result<(), Error> {
        Ok(self.fetcher.as_ref().map_or(Ok(()), |fetcher| fetcher.files().check_unchanged())?)
    }

    /// Reads every expert that has a slot of its own, layer by layer, and puts it into kernel order: for layers that hold all.
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
        self.traffic = Traffic::default();
        Ok(())
    }

    /// Asks for experts of a layer that comes next and will need nearly all of them, as far as there is room that nobody needs.
    pub(crate) fn read_ahead(&mut self, layer: MoeLayer) -> Result<(), Error> {
        let (Some(fetcher), Some(slots)) = (&mut self.fetcher, self.layers.get_mut(layer.0)) else { return Ok(()) };
        for expert in 0..slots.catalogue.count as u32 {
            if slots.find(expert).is_some() || self.staging.find(layer, expert).is_some() {
                continue;
            }
            let slot = match slots.victim(false, &self.arena) {
                Some(index) => slots.assign(index, expert, self.time),
                None => match self.staging.assign(layer, expert, slots.catalogue.layouts(), &self.arena) {
                    Some(slot) => slot,
                    None => break,
                },
            };
            fetcher.request(slot, &slots.catalogue.slices(expert), Urgency::Demand)?;
            self.traffic.fetches += 1;
            self.unchecked = true;
        }
        fetcher.submit();
        Ok(())
    }

    /// Asks for experts of a layer in the background, as far as there are slots that nobody needs.
    pub(crate) fn read_in_idle_time(
        &mut self,
        layer: MoeLayer,
        wanted: impl Iterator<Item = u32>,
    ) -> Result<(), Error> {
        let Some(fetcher) = &mut self.fetcher else { return Ok(()) };
        let slots = &mut self.layers[layer.0];
        for expert in wanted {
            if slots.find(expert).is_some() {
                continue;
            }
            let Some(index) = slots.victim(false, &self.arena) else { break };
            let slot = slots.assign(index, expert, self.time);
            fetcher.request(slot, &slots.catalogue.slices(expert), Urgency::Background)?;
            self.traffic.fetches += 1;
            self.unchecked = true;
        }
        fetcher.submit();
        Ok(())
    }

    /// Whether a guess would delay nothing: every expert of the layer at hand has been asked for.
    pub(crate) fn has_room_for_guesses(&self) -> bool {
        self.fetcher.is_some() && self.requested == self.queue.len()
    }

    /// Asks in the background for experts that will probably be needed, into staging slots: nothing leaves for a guess.
    pub(crate) fn prefetch(&mut self, layer: MoeLayer, guess: &[u32]) -> Result<(), Error> {
        let Some(fetcher) = &mut self.fetcher else { return Ok(()) };
        let slots = &self.layers[layer.0];
        for &expert in guess {
            if slots.find(expert).is_some() || self.staging.find(layer, expert).is_some() {
                continue;
            }
            let Some(slot) = self.staging.assign(layer, expert, slots.catalogue.layouts(), &self.arena) else { break };
            fetcher.request(slot, &slots.catalogue.slices(expert), Urgency::Background)?;
            self.traffic.fetches += 1;
            self.traffic.prefetch_bytes += slots.catalogue.expert_bytes();
            self.guessed = true;
        }
        fetcher.submit();
        Ok(())
    }

    /// Starts a layer's part of a step: `needed` are the experts that its tokens chose, ascending.
    pub(crate) fn begin(&mut self, layer: MoeLayer, needed: &[u32]) -> Result<(), Error> {
        self.time += 1;
        self.layer = layer;
        if let Some(fetcher) = &mut self.fetcher {
            self.staging.drop_failed(fetcher, &self.arena);
            self.staging.retain(fetcher, |of, expert| of == layer && needed.binary_search(&expert).is_ok());
        }
        self.queue.clear();
        // Presence can change between these passes only towards "resident", and only when the fetcher is asked.
        let extend = |store: &mut ExpertStore, wanted: &dyn Fn(&ExpertStore, u32) -> bool| {
            for &expert in needed {
                if wanted(store, expert) {
                    store.queue.push(expert);
                }
            }
            store.queue.len()
        };
        let held = |store: &ExpertStore, expert| store.layers[layer.0].is_held(expert);
        self.passing = extend(self, &|store, e| store.presence(layer, e) == Presence::Resident && !held(store, e));
        self.resident = extend(self, &|store, e| store.presence(layer, e) == Presence::Resident && held(store, e));
        self.coming = extend(self, &|store, e| store.presence(layer, e) == Presence::Coming);
        extend(self, &|store, e| store.presence(layer, e) == Presence::Absent);
        (self.requested, self.computed) = (self.coming, 0);
        if self.unchecked {
            // What was read ahead and counts as resident now has been read before this look at the files.
            self.check_files()?;
            self.unchecked = self.fetcher.as_ref().is_some_and(|fetcher| !fetcher.is_idle());
        }
        for &expert in needed {
            let slots = &mut self.layers[layer.0];
            slots.waiting[expert as usize] = true;
            slots.touch(expert, self.time);
        }
        for index in self.resident..self.queue.len() {
            let expert = self.queue[index];
            if index < self.coming {
                let slot = self.slot(layer, expert);
                self.traffic.late_hits += 1;
                if self.guessed {
                    self.traffic.prefetch_useful_bytes += self.layers[layer.0].catalogue.expert_bytes();
                }
                if let Some(fetcher) = &mut self.fetcher {
                    fetcher.promote(slot);
                }
            } else {
                // A fetch ahead that failed is made again.
                self.layers[layer.0].forget(expert);
            }
        }
        self.guessed = false;
        self.request_ahead(layer)
    }

    /// The experts to compute next, at most `most`, their ids ascending; `None` when all are done. They may still be on their way: see [`ExpertStore::wait`].
    pub(crate) fn next_group(&self, layer: MoeLayer, most: usize) -> Option<Group> {
        let start = self.computed;
        let end = match start {
            _ if start < self.passing => self.passing,
            _ if start < self.resident => self.resident,
            _ if start < self.queue.len() => {
                // The next one, and those behind it in its section that are whole already.
                let section = if start < self.coming { self.coming } else { self.requested };
                let landed = |&index: &usize| self.has_landed(layer, self.queue[index]);
                start + 1 + (start + 1..section).take_while(landed).count()
            }
            _ => return None,
        };
        Some(start..end.min(start + most))
    }

    /// Whether a group's experts were there when the layer began.
    pub(crate) fn is_resident(&self, group: &Group) -> bool {
        group.end <= self.resident
    }

    /// The experts of a group.
    pub(crate) fn ids(&self, group: &Group) -> &[u32] {
        &self.queue[group.clone()]
    }

    /// Sleeps until a projection of every expert of the group can be used; the ones before it have landed then, too.
    pub(crate) fn wait(&mut self, layer: MoeLayer, group: &Group, projection: Projection) -> Result<(), Error> {
        for index in group.clone().filter(|&index| index >= self.resident) {
            let expert = self.queue[index];
            let slot = self.slot(layer, expert);
            for slice in 0..=projection as usize {
                if self.arena.has_landed(slot, slice) {
                    continue;
                }
                let started = Instant::now();
                let fetcher = self.fetcher.as_mut().expect("what is not resident was requested from the fetcher");
                let outcome = fetcher.wait(slot, slice);
                self.traffic.waited += started.elapsed();
                outcome?;
            }
            if projection == Projection::Down {
                self.check_files()?;
            }
        }
        Ok(())
    }

    /// Keeps flash busy: starts reads that waited for others to come back. To be called every millisecond or two while computing.
    pub(crate) fn poll(&mut self) -> Result<(), Error> {
        match &mut self.fetcher {
            Some(fetcher) if !fetcher.is_idle() => Ok(fetcher.poll()?),
            _ => Ok(()),
        }
    }

    /// Puts projections of the experts of a group into kernel order where that pays: of those used before, of those that have many
    /// tokens, and of those that stand in another CPU's order, which is slow to compute with. The projections have landed.
    pub(crate) fn put_in_order(
        &mut self,
        layer: MoeLayer,
        group: &Group,
        projections: &[Projection],
        cpu: &Cpu,
        tokens_of: impl Fn(u32) -> usize,
    ) -> Result<(), Error> {
        for index in group.clone() {
            let expert = self.queue[index];
            let pays = index < self.resident || tokens_of(expert) >= ORDER_FROM_TOKENS;
            for slice in projections.iter().map(|&projection| projection as usize) {
                let shape = self.layers[layer.0].catalogue.projections[slice];
                let from = self.layouts(layer, expert)[slice];
                if from == cpu.isa().layout(shape.format) || (from == Layout::Plain && !pays) {
                    continue;
                }
                let layout = {
                    let mut pin = self.arena.pin(self.slot(layer, expert))?;
                    let mut bytes = pin.write(slice)?;
                    cpu.reorder(shape.format, shape.rows, shape.columns, from, &mut bytes)
                };
                self.layouts_mut(layer, expert)[slice] = layout;
            }
        }
        Ok(())
    }

    /// Keeps an expert in its slot while it is computed with.
    pub(crate) fn pin(&self, layer: MoeLayer, expert: u32) -> Result<PinnedExpert<'_>, Error> {
        let pin = self.arena.pin(self.slot(layer, expert))?;
        Ok(PinnedExpert { pin, layouts: *self.layouts(layer, expert), catalogue: &self.layers[layer.0].catalogue })
    }

    /// A group has been computed: its experts may leave, and more reads may start.
    pub(crate) fn finish_group(&mut self, layer: MoeLayer, group: Group) -> Result<(), Error> {
        for index in group.clone() {
            let expert = self.queue[index];
            self.layers[layer.0].waiting[expert as usize] = false;
            self.unstage(layer, expert)?;
        }
        self.computed = group.end;
        self.request_ahead(layer)
    }

    /// Takes an expert that has been computed out of staging: into a slot of its layer if a session holds it and there is room.
    fn unstage(&mut self, layer: MoeLayer, expert: u32) -> Result<(), Error> {
        let Some(staged) = self.staging.find_mut(layer, expert) else { return Ok(()) };
        let slots = &mut self.layers[layer.0];
        if slots.is_held(expert)
            && let Some(index) = slots.victim(false, &self.arena)
        {
            let layouts = staged.layouts;
            let place = slots.assign(index, expert, self.time);
            if self.arena.slot_bytes(place) == self.arena.slot_bytes(staged.id) {
                staged.exchange(slots.id_mut(index));
            } else {
                let pin = self.arena.pin(staged.id)?;
                self.arena.copy(&pin, place)?;
            }
            *slots.layouts_mut(expert).expect("it was just assigned") = layouts;
        }
        if let Some(fetcher) = &mut self.fetcher {
            self.staging.release(layer, expert, fetcher);
        }
        Ok(())
    }

    /// Requests absent experts in the order of the queue, as long as there is room for the next one.
    fn request_ahead(&mut self, layer: MoeLayer) -> Result<(), Error> {
        let before = self.requested;
        while self.requested < self.queue.len() {
            let expert = self.queue[self.requested];
            let slots = &mut self.layers[layer.0];
            let mut place = slots.victim(false, &self.arena).map(|index| slots.assign(index, expert, self.time));
            // What no session keeps passes through. What one keeps waits for a slot of the layer, if any can become free.
            if place.is_none() && (!slots.is_held(expert) || slots.len() == 0) {
                place = self.staging.assign(layer, expert, slots.catalogue.layouts(), &self.arena);
            }
            if place.is_none() && self.requested == self.computed {
                // Nothing is under way that could make room: another session's expert has to leave.
                let forced = slots.victim(true, &self.arena).map(|index| slots.assign(index, expert, self.time));
                place = forced.or_else(|| self.staging.assign(layer, expert, slots.catalogue.layouts(), &self.arena));
                if place.is_none() {
                    // Only reads that were given up occupy the slots: wait for them.
                    self.fetcher.as_mut().expect("reads are under way").wait_all()?;
                    continue;
                }
            }
            let Some(slot) = place else { break };
            let slices = self.layers[layer.0].catalogue.slices(expert);
            let fetcher = self.fetcher.as_mut().expect("a model with absent experts has a fetcher");
            fetcher.request(slot, &slices, Urgency::Demand)?;
            self.traffic.fetches += 1;
            self.requested += 1;
        }
        match &mut self.fetcher {
            Some(fetcher) if self.requested > before => fetcher.submit(),
            Some(fetcher) if !fetcher.is_idle() => fetcher.poll()?,
            _ => {}
        }
        Ok(())
    }

    /// Ends a step that failed, wherever that was: waits for what is under way and forgets what did not come.
    pub(crate) fn abandon(&mut self) {
        let Some(fetcher) = &mut self.fetcher else { return };
        // The error that ended the step is what counts; here everything only has to come to rest.
        let _ = fetcher.wait_all();
        self.staging.retain(fetcher, |_, _| false);
        let slots = &mut self.layers[self.layer.0];
        for &expert in &self.queue {
            slots.waiting[expert as usize] = false;
            if let Some(slot) = slots.find(expert)
                && self.arena.state(slot) != SlotState::Filled
            {
                let _ = fetcher.take_error(slot);
                slots.forget(expert);
            }
        }
        self.queue.clear();
        (self.passing, self.resident, self.coming, self.requested, self.computed) = (0, 0, 0, 0, 0);
    }

    fn presence(&self, layer: MoeLayer, expert: u32) -> Presence {
        let own = self.layers[layer.0].find(expert).map(|slot| self.arena.state(slot));
        let staged = self.staging.find(layer, expert).map(|staged| self.arena.state(staged.id));
        match (own, staged) {
            (Some(SlotState::Filled), _) => Presence::Resident,
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

    fn has_landed(&self, layer: MoeLayer, expert: u32) -> bool {
        self.arena.state(self.slot(layer, expert)) == SlotState::Filled
    }
}

/// An expert that stays where it is.
pub(crate) struct PinnedExpert<'a> {
    pin: Pin<'a>,
    layouts: Layouts,
    catalogue: &'a LayerCatalogue,
}

impl PinnedExpert<'_> {
    /// One of its matrices, which has landed: gate and up `[feed_forward, hidden]`, down `[hidden, feed_forward]`.
    pub(crate) fn matrix(&self, projection: Projection) -> Matrix<'_> {
        let slice = projection as usize;
        let shape = &self.catalogue.projections[slice];
        let bytes = self.pin.slice(slice).expect("the projection has been waited for");
        Matrix { format: shape.format, rows: shape.rows, columns: shape.columns, layout: self.layouts[slice], bytes }
    }
}
