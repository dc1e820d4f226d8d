//! A cell beside the original routing on the same text, and the speed that its misses allow.

use super::store::CellResult;
use crate::Study;
use crate::likelihood::PerplexityRise;
use crate::statistics::{Interval, why_no_interval};
use crate::{PerplexityReport, TimingModel};
use serde::{Deserialize, Serialize};

/// One row of the results.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CellSummary {
    /// The cell's name.
    pub name: String,
    /// The policy with all parameters.
    pub routing: String,
    /// Which cached expert leaves.
    pub eviction: String,
    /// The capacity as it was asked for.
    pub capacity: String,
    /// Tokens scored.
    pub tokens: usize,
    /// In so many windows; no part of the file.
    #[serde(skip)]
    pub windows: usize,
    /// Per token.
    pub perplexity: f64,
    /// Above the original's, as a share; `None` where the original has not been run.
    pub perplexity_rise: Option<f64>,
    /// The 95 % interval of that, by paired bootstrap over blocks of windows.
    pub perplexity_rise_interval: Option<Interval>,
    /// Mean of D(original ‖ policy), in nats a token, where original routing ran along.
    pub kl_mean: Option<f64>,
    /// The 95 % interval of that, by bootstrap over blocks of windows.
    pub kl_interval: Option<Interval>,
    /// Share of the tokens where both find the same token likeliest, likewise.
    pub top1_agreement: Option<f64>,
    /// Its interval.
    pub top1_agreement_interval: Option<Interval>,
    /// Misses, as a share of tokens · layers · K.
    pub miss_rate: f64,
    /// Misses of all layers, a token.
    pub misses_per_token: f64,
    /// Bytes of the missed experts, a token.
    pub logical_bytes_per_token: f64,
    /// The model's own choices that did not run, as a share.
    pub changed_share: f64,
    /// Of the model's strongest choices (as many as J is by default) the share that ran, if known.
    pub top_j_kept: Option<f64>,
    /// Mean number of tokens that an expert stays cached.
    pub lifetime_mean: f64,
    /// Stays among them that had not ended where the text or its cache did, if known.
    pub lifetimes_still_cached: Option<u64>,
    /// By the timing model, if there is one and something takes time.
    pub tokens_per_second: Option<f64>,
    /// Whether no other cell of the same capacity and eviction has both lower perplexity and fewer misses.
    pub on_front: bool,
}

impl CellSummary {
    /// What a line of a plot joins: the policy's name and its parameters but the first, which is its strength.
    pub fn series(&self) -> String {
        let (policy, parameters) = self.routing.split_once(':').unwrap_or((&self.routing, ""));
        match parameters.split_once(',') {
            Some((_, others)) => format!("{policy}, {others}"),
            None => policy.to_owned(),
        }
    }

    /// The rise of perplexity in percent, with its interval; empty where it is unknown.
    pub fn rise_text(&self) -> String {
        let Some(rise) = self.perplexity_rise else { return String::new() };
        match self.perplexity_rise_interval {
            Some(Interval { low, high }) if self.routing != "original" => {
                format!("{:+.2} % ({:+.2} to {:+.2})", 100.0 * rise, 100.0 * low, 100.0 * high)
            }
            _ => format!("{:+.2} %", 100.0 * rise),
        }
    }

    /// Why the rise has no interval, for people; `None` where it has one, or needs none.
    pub fn why_no_interval(&self) -> Option<String> {
        let is_bare = self.perplexity_rise.is_some() && self.perplexity_rise_interval.is_none();
        why_no_interval(self.windows).filter(|_| is_bare && self.routing != "original")
    }

    fn is_beside(&self, other: &CellSummary) -> bool {
        self.capacity == other.capacity && self.eviction == other.eviction
    }
}

/// Rows of all cells, by capacity, eviction and miss rate.
pub(super) fn summarise(study: &Study, results: &[CellResult], timing: Option<TimingModel>) -> Vec<CellSummary> {
    // The original computes the same whatever is cached, so any of its cells will do.
    let original = results.iter().map(|result| &result.report).find(|report| report.routing == "original");
    let mut rows: Vec<CellSummary> = results.iter().map(|result| row(study, result, original, timing)).collect();
    // One capacity may be written in several ways: the first one names them all.
    for (row, result) in rows.iter_mut().zip(results) {
        let named = results.iter().find(|other| other.report.capacity == result.report.capacity);
        named.expect("the result itself is one").capacity.clone_into(&mut row.capacity);
    }
    rows.sort_by(|one, other| {
        let key = |row: &CellSummary| (natural(&row.capacity), row.capacity.clone(), row.eviction.clone());
        let by_place = key(one).partial_cmp(&key(other)).unwrap_or(std::cmp::Ordering::Equal);
        by_place.then(one.miss_rate.total_cmp(&other.miss_rate))
    });
    let beats = |other: &CellSummary, row: &CellSummary| {
        let no_worse = other.perplexity <= row.perplexity && other.miss_rate <= row.miss_rate;
        no_worse && (other.perplexity < row.perplexity || other.miss_rate < row.miss_rate)
    };
    let on_front: Vec<bool> =
        rows.iter().map(|row| !rows.iter().any(|other| other.is_beside(row) && beats(other, row))).collect();
    rows.iter_mut().zip(on_front).for_each(|(row, on_front)| row.on_front = on_front);
    rows
}

fn row(
    study: &Study,
    result: &CellResult,
    original: Option<&PerplexityReport>,
    timing: Option<TimingModel>,
) -> CellSummary {
    let report = &result.report;
    let bytes = logical_bytes_per_token(study, report);
    // A file that was meddled with is no reason to stop.
    let original = original.filter(|original| original.window_nll.len() == report.window_nll.len());
    let divergence = report.divergence.as_ref();
    let rise = original.map(|original| report.rise_over(original));
    CellSummary {
        name: result.name.clone(),
        routing: study.resolved(&report.routing),
        eviction: report.eviction.clone(),
        capacity: result.capacity.clone(),
        tokens: report.tokens,
        windows: report.window_nll.len(),
        perplexity: report.perplexity,
        perplexity_rise: rise.as_ref().map(PerplexityRise::rise),
        perplexity_rise_interval: rise.as_ref().and_then(PerplexityRise::interval),
        kl_mean: divergence.map(|divergence| divergence.kl_mean),
        kl_interval: divergence.and_then(|divergence| divergence.kl_interval),
        top1_agreement: divergence.map(|divergence| divergence.top1_agreement),
        top1_agreement_interval: divergence.and_then(|divergence| divergence.top1_agreement_interval),
        miss_rate: report.miss_rate,
        misses_per_token: report.misses_per_token,
        logical_bytes_per_token: bytes,
        changed_share: report.changed_share,
        top_j_kept: report.top_j_kept,
        lifetime_mean: report.lifetime_mean,
        lifetimes_still_cached: report.lifetimes_still_cached,
        tokens_per_second: timing.map(|timing| timing.tokens_per_second(bytes, 0.0)).filter(|speed| speed.is_finite()),
        on_front: false,
    }
}

fn logical_bytes_per_token(study: &Study, report: &PerplexityReport) -> f64 {
    let layers = report.per_layer.iter().zip(&study.expert_bytes);
    let bytes: f64 = layers.map(|(layer, &bytes)| layer.misses as f64 * bytes as f64).sum();
    let misses: u64 = report.per_layer.iter().map(|layer| layer.misses).sum();
    // Per token that ran: with --bos more run than are scored.
    if misses == 0 { 0.0 } else { bytes / misses as f64 * report.misses_per_token }
}

/// The number that a capacity begins with, so that 8 comes before 30.
fn natural(text: &str) -> f64 {
    let digits: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    digits.parse().unwrap_or(f64::INFINITY)
}
