//! A session's routing: one logical cache and one running range per MoE layer, one policy per phase.
//!
//! The engine calls [`SessionRouting::route`] once per token and layer. Layers are independent of each other, so a chunk of
//! tokens may be routed layer by layer, in order within each layer, with the same result as token by token.

use crate::figures::{Counts, Lifetimes};
use crate::layer::{Layer, Scratch};
use crate::{Error, LayerShape, Phase, RouterScores, RoutingOptions, Selection};

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
    pub fn new(shapes: &[LayerShape], options: RoutingOptions) -> Result<Self, Error> {
        for (layer, shape) in shapes.iter().enumerate() {
            shape.validate(layer)?;
            for policy in [&options.policy, &options.prompt_policy] {
                policy.validate(shape.experts, shape.experts_per_token)?;
            }
        }
        let layers = shapes.iter().map(|&shape| Layer::new(shape, options.eviction)).collect();
        let most = |number: fn(&LayerShape) -> usize| shapes.iter().map(number).max().unwrap_or(0);
        let scratch = Scratch::new(most(|shape| shape.experts), most(|shape| shape.experts_per_token));
        Ok(Self { options, layers, scratch })
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
        let layers = self.layers.len();
        let state = self.layers.get_mut(layer).ok_or(Error::NoSuchLayer { layer, layers })?;
        let policy = match phase {
            Phase::Prompt => &self.options.prompt_policy,
            Phase::Generation => &self.options.policy,
        };
        state.route(layer, scores.into(), policy, self.options.touch, phase, &mut self.scratch, out)
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
