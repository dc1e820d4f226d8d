//! The crate's one error type. Every message names what was wrong, what was given and what is allowed.

/// What can go wrong in routing: a bad specification, a bad shape, or bad router output.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A policy, eviction, touch order or start state that could not be read.
    #[error("{option} `{given}`: allowed is {allowed}")]
    Spec {
        /// What was being read, e.g. `routing` or `routing cache-prior: j`.
        option: String,
        /// The text that was given.
        given: String,
        /// What would have been accepted.
        allowed: String,
    },
    /// A parameter without which a specification says too little.
    #[error("{option} is missing, allowed is {allowed}")]
    Missing {
        /// What is missing, e.g. `routing swap: rank`.
        option: String,
        /// What would have been accepted.
        allowed: String,
    },
    /// A parameter that is well formed but does not fit the layer.
    #[error(
        "routing {parameter} is {given}, allowed is {allowed} (layer with {experts} experts, {experts_per_token} a token)"
    )]
    Parameter {
        /// Policy and parameter, e.g. `max-rank: m`.
        parameter: &'static str,
        /// The value.
        given: String,
        /// The allowed values.
        allowed: String,
        /// N of the layer.
        experts: usize,
        /// K of the layer.
        experts_per_token: usize,
    },
    /// A layer that no model can have.
    #[error("MoE layer {layer}: {what} is {given}, allowed is {allowed}")]
    Shape {
        /// Index among the MoE layers.
        layer: usize,
        /// Which number of the layer.
        what: &'static str,
        /// The value.
        given: usize,
        /// The allowed values.
        allowed: String,
    },
    /// A list with one entry per MoE layer has the wrong length.
    #[error("{what}: {given} entries for {expected} MoE layers")]
    LayerCount {
        /// Which list.
        what: &'static str,
        /// Its length.
        given: usize,
        /// The number of MoE layers.
        expected: usize,
    },
    /// A list of expert ids is wrong: out of range, repeated, out of order, too few or too many.
    #[error("MoE layer {layer}: {what}: {problem}")]
    Experts {
        /// Index among the MoE layers.
        layer: usize,
        /// Which list.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The router gave a score that is not a number or infinite.
    #[error("MoE layer {layer}: the router's score of expert {expert} is {value}, expected a finite number")]
    NonFinite {
        /// Index among the MoE layers.
        layer: usize,
        /// The expert.
        expert: usize,
        /// Its score.
        value: f32,
    },
    /// The number of scores is not the layer's number of experts.
    #[error("MoE layer {layer}: {given} {what} for {expected} experts")]
    ScoreCount {
        /// Index among the MoE layers.
        layer: usize,
        /// Which scores.
        what: &'static str,
        /// How many were given.
        given: usize,
        /// N of the layer.
        expected: usize,
    },
    /// A layer index at or beyond the number of MoE layers.
    #[error("MoE layer {layer} of {layers}")]
    NoSuchLayer {
        /// The index asked for.
        layer: usize,
        /// The number of MoE layers.
        layers: usize,
    },
    /// An eviction that needs router scores met a trace that has none.
    #[error("eviction `{eviction}` needs router scores; this selection was replayed without them")]
    NeedsScores {
        /// The eviction.
        eviction: String,
    },
}
