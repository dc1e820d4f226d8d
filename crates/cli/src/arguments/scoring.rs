//! How a text is scored.

use super::positive;
use clap::Args;
use moce_engine::EngineOptions;
use moce_lab::{KEPT_LOGITS_BYTES, PerplexityOptions};

#[derive(Debug, Args)]
pub(crate) struct Scoring {
    /// Tokens predicted per window
    #[arg(long, value_name = "N", default_value = "1024", value_parser = positive)]
    window: usize,
    /// Score at most this many tokens (whole windows)
    #[arg(long, value_name = "TOKENS", value_parser = positive)]
    limit: Option<usize>,
    /// Put the BOS token in front of every window
    #[arg(long)]
    bos: bool,
    /// Run original routing along: KL divergence, agreement of the likeliest token, and the rise of perplexity, with intervals
    #[arg(long)]
    kl: bool,
}

/// Tokens whose logits are held at once: the head's weights are read once for so many, and a row of a vocabulary of 150,000 is 0.6 MB.
pub(crate) const LOGIT_ROWS: usize = 64;

impl Scoring {
    /// The context length that [`Scoring::prepare`] asks for, for people.
    pub(crate) const CONTEXT: &str = "a window, and its BOS with --bos";

    pub(crate) fn options(&self) -> PerplexityOptions {
        PerplexityOptions { window: self.window, limit: self.limit, bos: self.bos, kl: self.kl }
    }

    /// What an engine needs for that: unless another context is asked for, a window and its BOS have to fit, and nothing more.
    pub(crate) fn prepare(&self, engine: &mut EngineOptions) {
        engine.logit_rows = LOGIT_ROWS;
        engine.spare_slots = true;
        if self.kl {
            (engine.sessions, engine.reserve) = (2, KEPT_LOGITS_BYTES as u64);
        }
        engine.context.get_or_insert(self.window + usize::from(self.bos));
    }
}
