//! A layer's part of a step, from [`ExpertStore::begin`] to the last [`ExpertStore::finish_group`]: what is absent is requested, what is there
//! is computed with, and what was computed with makes room.
//!
//! An expert *waits* from `begin` until its group is finished, and does not leave meanwhile. It is pinned only while a product reads it.

use super::{ExpertStore, Group, Queue};
use crate::Error;
use crate::experts::{MoeLayer, Projection};
use moce_flash::{SlotId, SlotState, Urgency};
use moce_kernels::{Cpu, Layout};
use std::time::Instant;

/// Tokens of an expert from which putting it into kernel order pays at once; below, it is computed as it stands in the file the first
/// time, and ordered when it is used again, unless it has one token and the kernels read plain rows well (bench/KERNELS.md).
pub(super) const ORDER_FROM_TOKENS: usize = 4;

impl ExpertStore {
    /// Starts a layer's part of a step: `needed` are the experts that its tokens chose, ascending.
    pub(crate) fn begin(&mut self, layer: MoeLayer, needed: &[u32]) -> Result<(), Error> {
        self.time += 1;
        if let Some(fetcher) = &mut self.fetcher {
            self.staging.drop_failed(fetcher, &self.arena);
            self.staging.retain(fetcher, |of, expert| of == layer && needed.binary_search(&expert).is_ok());
        }
        // Presence changes only when the fetcher is asked, so it is the same throughout.
        let mut queue = std::mem::replace(&mut self.queue, Queue::new(0));
        queue.begin(needed, |expert| self.presence(layer, expert));
        self.queue = queue;
        if self.unchecked {
            // What was read ahead and counts as resident now has been read before this look at the files.
            self.check_files()?;
            self.unchecked = self.fetcher.as_ref().is_some_and(|fetcher| !fetcher.is_idle());
        }
        let slots = &mut self.layers[layer.0];
        for &expert in needed {
            slots.waiting[expert as usize] = true;
            slots.touch(expert, self.time);
        }
        for index in self.queue.absent() {
            // A fetch ahead that failed is made again.
            slots.forget(self.queue.experts()[index]);
        }
        for index in self.queue.coming() {
            self.traffic.late_hits += 1;
            if self.guessed {
                self.traffic.prefetch_useful_bytes += self.layers[layer.0].catalogue.expert_bytes();
            }
            let slot = self.slot(layer, self.queue.experts()[index]);
            if let Some(fetcher) = &mut self.fetcher {
                fetcher.promote(slot);
            }
        }
        self.guessed = false;
        self.request_ahead(layer)
    }

    /// The experts to compute next, at most `most`, their ids ascending; `None` when all are done. They may still be on their way: see
    /// [`ExpertStore::wait`].
    pub(crate) fn next_group(&self, layer: MoeLayer, most: usize) -> Option<Group> {
        self.queue.next_group(most, |expert| self.arena.state(self.slot(layer, expert)) == SlotState::Filled)
    }

    /// Whether a group's experts were there when the layer began.
    pub(crate) fn is_resident(&self, group: &Group) -> bool {
        group.end == 0 || self.queue.was_resident(group.end - 1)
    }

    /// The experts of a group.
    pub(crate) fn ids(&self, group: &Group) -> &[u32] {
        self.queue.ids(group)
    }

    /// Sleeps until a projection of every expert of the group can be used; the ones before it have landed then, too.
    pub(crate) fn wait(&mut self, layer: MoeLayer, group: &Group, projection: Projection) -> Result<(), Error> {
        for index in group.clone() {
            if self.queue.was_resident(index) {
                continue;
            }
            let slot = self.slot(layer, self.queue.experts()[index]);
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

    /// Puts projections of the experts of a group into kernel order where that pays ([`ORDER_FROM_TOKENS`]), and those that stand in
    /// another CPU's order, which is slow to compute with. The projections have landed.
    pub(crate) fn put_in_order(
        &mut self,
        layer: MoeLayer,
        group: &Group,
        projections: &[Projection],
        cpu: &Cpu,
        tokens_of: impl Fn(u32) -> usize,
    ) -> Result<(), Error> {
        for index in group.clone() {
            let expert = self.queue.experts()[index];
            let tokens = tokens_of(expert);
            let well_as_it_stands = tokens == 1 && cpu.isa().reads_plain_rows();
            let pays = tokens >= ORDER_FROM_TOKENS || (self.queue.was_resident(index) && !well_as_it_stands);
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

    /// A group has been computed: its experts may leave, and more reads may start.
    pub(crate) fn finish_group(&mut self, layer: MoeLayer, group: Group) -> Result<(), Error> {
        for index in group.clone() {
            let expert = self.queue.experts()[index];
            self.layers[layer.0].waiting[expert as usize] = false;
            self.unstage(layer, expert)?;
        }
        self.queue.computed = group.end;
        self.request_ahead(layer)
    }

    /// Takes an expert that has been computed out of staging: into a slot of its layer if a session holds it and there is room.
    fn unstage(&mut self, layer: MoeLayer, expert: u32) -> Result<(), Error> {
        if self.staging.find(layer, expert).is_none() {
            return Ok(());
        }
        if self.layers[layer.0].is_held(expert)
            && let Some(place) = self.own_slot(layer, expert, false)
        {
            const ASSIGNED: &str = "it was just assigned";
            let slots = &mut self.layers[layer.0];
            let staged = self.staging.find_mut(layer, expert).expect("nothing has left staging");
            let layouts = staged.layouts;
            if self.arena.slot_bytes(place) == self.arena.slot_bytes(staged.id) {
                staged.exchange(slots.id_mut(expert).expect(ASSIGNED));
            } else {
                let pin = self.arena.pin(staged.id)?;
                self.arena.copy(&pin, place)?;
            }
            *slots.layouts_mut(expert).expect(ASSIGNED) = layouts;
        }
        if let Some(fetcher) = &mut self.fetcher {
            self.staging.release(layer, expert, fetcher);
        }
        Ok(())
    }

    /// Requests absent experts in the order of the queue, as long as there is room for the next one.
    fn request_ahead(&mut self, layer: MoeLayer) -> Result<(), Error> {
        let before = self.queue.requested;
        while !self.queue.is_requested() {
            let expert = self.queue.experts()[self.queue.requested];
            let Some(slot) = self.place(layer, expert)? else { break };
            self.fetch(layer, expert, slot, Urgency::Demand)?;
            self.queue.requested += 1;
        }
        match &mut self.fetcher {
            Some(fetcher) if self.queue.requested > before => fetcher.submit(),
            Some(fetcher) if !fetcher.is_idle() => fetcher.poll()?,
            _ => {}
        }
        Ok(())
    }

    /// Room for an absent expert; `None`: later, when others have been computed.
    fn place(&mut self, layer: MoeLayer, expert: u32) -> Result<Option<SlotId>, Error> {
        if let Some(slot) = self.own_slot(layer, expert, false) {
            return Ok(Some(slot));
        }
        // What no session keeps passes through. What one keeps takes a slot of the layer: one that will soon be nobody's if there is
        // such a one, else at once that of an expert that is kept, too.
        let slots = &self.layers[layer.0];
        if !slots.is_held(expert) || slots.len() == 0 {
            if let Some(slot) = self.staging_slot(layer, expert) {
                return Ok(Some(slot));
            }
        } else if !self.will_free_a_slot(layer)
            && let Some(slot) = self.own_slot(layer, expert, true)
        {
            return Ok(Some(slot));
        }
        if self.queue.requested > self.queue.computed {
            return Ok(None);
        }
        // Nothing is under way that could make room: an expert that is kept has to leave.
        if let Some(slot) = self.own_slot(layer, expert, true).or_else(|| self.staging_slot(layer, expert)) {
            return Ok(Some(slot));
        }
        // With nothing to be computed, no expert is in staging: only reads that were given up occupy it.
        let given_up = self.staging.given_up(&self.arena).expect("no staging slot is vacant");
        self.fetcher.as_mut().expect("reads are under way").wait_given_up(given_up)?;
        Ok(Some(self.staging_slot(layer, expert).expect("its reads are back")))
    }

    /// Whether an expert that waits to be computed has a slot of the layer that no session keeps it in.
    fn will_free_a_slot(&self, layer: MoeLayer) -> bool {
        let slots = &self.layers[layer.0];
        let waiting = self.queue.ids(&(self.queue.computed..self.queue.requested));
        waiting.iter().any(|&expert| !slots.is_held(expert) && slots.find(expert).is_some())
    }

    /// Ends a step that failed, wherever that was: gives up all that has not come, also what is read in the background, and waits only for
    /// the reads that have begun.
    pub(crate) fn abandon(&mut self) {
        let Some(fetcher) = &mut self.fetcher else { return };
        // The error that ended the step is what counts; here everything only has to come to rest.
        let _ = fetcher.cancel_all();
        self.staging.retain(fetcher, |_, _| false);
        // What did come may have been read after a file had changed, and counts as resident from now on.
        self.unchecked = true;
        for slots in &mut self.layers {
            slots.waiting.fill(false);
            slots.forget_absent(&self.arena);
        }
        self.queue.clear();
    }
}
