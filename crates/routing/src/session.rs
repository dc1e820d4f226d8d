//! A session's routing: one logical cache and one running range per MoE layer, one policy per phase.
//!
//! The engine calls [`SessionRouting::route`] once per token and layer. Layers are independent of each other, so a chunk of
//! tokens may be routed layer by layer, in order within each layer, with the same result as token by token.

use crate::figures::{Counts, Lifetimes};
use crate::layer::{Layer, Scratch, Step};
use crate::{Error, LayerShape, LayerState, Phase, Policy, RouterScores, RoutingOptions, Selection};

/// Routing state of one session. A clone is a snapshot.
#[derive(Debug, Clone)]
pub struct SessionRouting {
    options: RoutingOptions,
    layers: Vec<Layer>,
    scratch: Scratch,
}

impl SessionRouting {
    /// State for the MoE layers of a model, in order.
    ///
    /// # Errors
    /// If a shape is impossible, or a policy's parameters do not fit a layer.
    pub fn new(shapes: &[LayerShape], mut options: RoutingOptions) -> Result<Self, Error> {
        for (layer, shape) in shapes.iter().enumerate() {
            shape.validate(layer)?;
        }
        for policy in [&mut options.policy, &mut options.prompt_policy] {
            *policy = policy.resolved_for(shapes.iter())?;
        }
        options.eviction.validate()?;
        options.start.validate(shapes)?;
        let layers = shapes.iter().map(|&shape| Layer::new(shape, options.eviction)).collect();
        let most = |number: fn(&LayerShape) -> usize| shapes.iter().map(number).max().unwrap_or(0);
        let scratch = Scratch::new(most(|shape| shape.experts), most(|shape| shape.experts_per_token));
        let mut session = Self { options, layers, scratch };
        session.restart_caches();
        Ok(session)
    }

    /// Routes one token in MoE layer `layer` (0-based among the MoE layers): chooses its experts by the phase's policy,
    /// judges hits against the cache before the token, and updates the cache. `scores` may be a plain slice of the scores
    /// that the model sorts by.
    ///
    /// # Errors
    /// If there is no such layer, or a score is missing or not finite; the state is then as before.
    pub fn route<'a>(
        &mut self,
        layer: usize,
        scores: impl Into<RouterScores<'a>>,
        phase: Phase,
        out: &mut Selection,
    ) -> Result<(), Error> {
        let step = Step { layer, phase, touch: self.options.touch };
        let policy = match phase {
            Phase::Prompt => &self.options.prompt_policy,
            Phase::Generation => &self.options.policy,
        };
        let layers = self.layers.len();
        let state = self.layers.get_mut(layer).ok_or(Error::NoSuchLayer { layer, layers })?;
        state.route(step, scores.into(), policy, &mut self.scratch, out)
    }

    /// Re-applies a selection made elsewhere, given by rank (strongest first), instead of choosing. Without `scores` the range
    /// stands still and changed selections are not known.
    ///
    /// # Errors
    /// As [`route`](Self::route); if the selection has more than K experts, or one that does not exist or comes twice; if the
    /// eviction needs scores and there are none.
    pub fn replay(
        &mut self,
        layer: usize,
        selection: &[u32],
        scores: Option<RouterScores<'_>>,
        phase: Phase,
        out: &mut Selection,
    ) -> Result<(), Error> {
        let eviction = self.options.eviction;
        if scores.is_none() && eviction.needs_scores() {
            return Err(Error::NeedsScores { eviction: eviction.to_string() });
        }
        let step = Step { layer, phase, touch: self.options.touch };
        let layers = self.layers.len();
        let state = self.layers.get_mut(layer).ok_or(Error::NoSuchLayer { layer, layers })?;
        state.replay(step, selection, scores, &mut self.scratch, out)
    }

    /// Exchanges the policies between tokens; caches, range and counts stay.
    ///
    /// # Errors
    /// If a policy's parameters do not fit a layer; the old policies then stay.
    pub fn set_policies(&mut self, policy: Policy, prompt_policy: Policy) -> Result<(), Error> {
        let shapes = || self.layers.iter().map(|layer| &layer.shape);
        let (policy, prompt_policy) = (policy.resolved_for(shapes())?, prompt_policy.resolved_for(shapes())?);
        (self.options.policy, self.options.prompt_policy) = (policy, prompt_policy);
        Ok(())
    }

    /// Sets every cache and its eviction's data back to the start state; range, position and counts stay. Experts that were
    /// cached count as still cached in the lifetimes. What perplexity does at each window.
    pub fn restart_caches(&mut self) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.restart_cache(&self.options.start.experts(index, layer.shape));
        }
    }

    /// Sets caches, evictions' data, range and position back to those of a new session; counts stay, and experts that were cached count as
    /// still cached in the lifetimes. For simulations that go on to the next text.
    pub fn restart(&mut self) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            layer.restart(&self.options.start.experts(index, layer.shape));
        }
    }

    /// Sets all counts to zero.
    pub fn clear_figures(&mut self) {
        self.layers.iter_mut().for_each(Layer::clear_figures);
    }

    /// A layer's policy state, to save it.
    pub fn state(&self, layer: usize) -> LayerState {
        self.layers[layer].state()
    }

    /// Takes over a saved policy state; counts stay, and experts that were cached count as still cached in the lifetimes.
    ///
    /// # Errors
    /// If there is no such layer, or the state does not fit it or its eviction; the layer then stays as it was.
    pub fn restore(&mut self, layer: usize, state: &LayerState) -> Result<(), Error> {
        let layers = self.layers.len();
        self.layers.get_mut(layer).ok_or(Error::NoSuchLayer { layer, layers })?.restore(layer, state)
    }

    /// The options the session was made with.
    pub fn options(&self) -> &RoutingOptions {
        &self.options
    }

    /// The number of MoE layers.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// The shape of a layer.
    ///
    /// # Panics
    /// If there is no such layer, as all methods that take a layer below.
    pub fn shape(&self, layer: usize) -> LayerShape {
        self.layers[layer].shape
    }

    /// The experts in a layer's logical cache, least recently touched first.
    pub fn cached(&self, layer: usize) -> impl Iterator<Item = u32> + '_ {
        self.layers[layer].recency.iter()
    }

    /// Whether an expert is in a layer's logical cache.
    pub fn is_cached(&self, layer: usize, expert: u32) -> bool {
        self.layers[layer].recency.contains(expert)
    }

    /// Δ of a layer: the mean of max(z) - min(z) over the tokens it has seen; 0 before the first.
    pub fn range(&self, layer: usize) -> f64 {
        self.layers[layer].range()
    }

    /// What was counted in a layer in one phase.
    pub fn counts(&self, layer: usize, phase: Phase) -> Counts {
        self.layers[layer].counts[phase as usize]
    }

    /// What was counted in all layers in one phase.
    pub fn total(&self, phase: Phase) -> Counts {
        self.layers.iter().map(|layer| layer.counts[phase as usize]).sum()
    }

    /// How long experts of a layer stayed cached, those still cached counted up to now.
    pub fn lifetimes(&self, layer: usize) -> Lifetimes {
        self.layers[layer].lifetimes_to_now()
    }

    /// How often each expert of a layer was chosen.
    pub fn usage(&self, layer: usize) -> &[u64] {
        &self.layers[layer].usage
    }
}
