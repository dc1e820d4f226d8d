//! Reads before a router has asked: for the next layer of a long prompt, for a warm start, for a guess. They take only room that nobody
//! needs.

use super::ExpertStore;
use crate::Error;
use crate::experts::MoeLayer;
use moce_flash::Urgency;

impl ExpertStore {
    /// Asks for experts of a layer that comes next and will need nearly all of them: into slots without an expert, then into staging. No
    /// resident one gives way, whether a session holds it or not: it is as likely to be needed as the one that would come.
    pub(crate) fn read_ahead(&mut self, layer: MoeLayer) -> Result<(), Error> {
        if self.fetcher.is_none() || layer.0 >= self.layers.len() {
            return Ok(());
        }
        for expert in 0..self.layers[layer.0].catalogue.count as u32 {
            if self.has_place(layer, expert) {
                continue;
            }
            let own = self.empty_slot(layer, expert);
            self.unchecked |= own.is_some();
            let Some(slot) = own.or_else(|| self.staging_slot(layer, expert)) else { break };
            self.fetch(layer, expert, slot, Urgency::Demand)?;
        }
        self.submit();
        Ok(())
    }

    /// Asks for experts of a layer in the background, as far as there are slots that nobody needs.
    pub(crate) fn read_in_idle_time(
        &mut self,
        layer: MoeLayer,
        wanted: impl Iterator<Item = u32>,
    ) -> Result<(), Error> {
        if self.fetcher.is_none() {
            return Ok(());
        }
        for expert in wanted {
            if self.layers[layer.0].find(expert).is_some() {
                continue;
            }
            let Some(slot) = self.own_slot(layer, expert, false) else { break };
            self.unchecked = true;
            self.fetch(layer, expert, slot, Urgency::Background)?;
        }
        self.submit();
        Ok(())
    }

    /// Whether a guess would delay nothing: every expert of the layer at hand has been asked for.
    pub(crate) fn has_room_for_guesses(&self) -> bool {
        self.fetcher.is_some() && self.queue.is_requested()
    }

    /// Asks in the background for experts that will probably be needed, into staging slots: nothing leaves for a guess.
    pub(crate) fn prefetch(&mut self, layer: MoeLayer, guess: &[u32]) -> Result<(), Error> {
        if self.fetcher.is_none() {
            return Ok(());
        }
        for &expert in guess {
            if self.has_place(layer, expert) {
                continue;
            }
            let Some(slot) = self.staging_slot(layer, expert) else { break };
            self.fetch(layer, expert, slot, Urgency::Background)?;
            self.traffic.prefetch_bytes += self.layers[layer.0].catalogue.expert_bytes();
            self.guessed = true;
        }
        self.submit();
        Ok(())
    }
}
