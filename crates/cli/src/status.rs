//! The live status of a generation: speed, hits and flash traffic of the last moments, and how far a long prompt is.
//!
//! Where text is written to a terminal, the status goes into the terminal's title, so that the two do not mix; where it goes elsewhere,
//! the status is a line on standard error.

use crate::report;
use indicatif::ProgressBar;
use moce_engine::PhaseReport;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often it changes.
const INTERVAL: Duration = Duration::from_millis(250);

/// Shows what tokens cost.
pub(crate) struct Status {
    place: Place,
    shown: Instant,
    /// Since it was shown.
    sum: PhaseReport,
}

enum Place {
    Title,
    Line,
    Nowhere,
}

impl Status {
    /// Shows something only if it is `wanted` and standard error is a terminal.
    pub(crate) fn new(wanted: bool) -> Status {
        let place = match wanted && report::stderr_is_interactive() {
            false => Place::Nowhere,
            true if std::io::stdout().is_terminal() => Place::Title,
            true => Place::Line,
        };
        Status { place, shown: Instant::now(), sum: PhaseReport::default() }
    }

    /// Adds the cost of more tokens.
    pub(crate) fn add(&mut self, cost: &PhaseReport) {
        self.sum.tokens += cost.tokens;
        self.sum.time += cost.time;
        self.sum.counts += cost.counts;
        self.sum.traffic.flash_bytes += cost.traffic.flash_bytes;
        self.sum.traffic.waited += cost.traffic.waited;
        if self.shown.elapsed() >= INTERVAL {
            self.show(&describe(&self.sum));
            self.sum = PhaseReport::default();
            self.shown = Instant::now();
        }
    }

    fn show(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        // A status that cannot be shown is no failure.
        let _ = match self.place {
            Place::Title => write!(stderr, "\x1b]2;moce: {text}\x07"),
            Place::Line => write!(stderr, "\r\x1b[K{text}"),
            Place::Nowhere => Ok(()),
        };
        let _ = stderr.flush();
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        match self.place {
            Place::Line => self.show(""),
            Place::Title => drop(write!(std::io::stderr(), "\x1b]2;\x07")),
            Place::Nowhere => {}
        }
    }
}

/// How far a prompt of several chunks is; it is gone when text comes.
pub(crate) struct PromptProgress(ProgressBar);

impl PromptProgress {
    /// Shows something only if it is `wanted` and standard error is a terminal.
    pub(crate) fn new(wanted: bool) -> PromptProgress {
        PromptProgress(report::progress_bar(!wanted, "{pos}/{len} tokens of the prompt"))
    }

    /// So many of the prompt's tokens are left.
    pub(crate) fn show(&self, tokens: usize, left: usize) {
        if left > 0 {
            self.0.set_length(tokens as u64);
            self.0.set_position((tokens - left) as u64);
        } else if !self.0.is_finished() {
            self.0.finish_and_clear();
        }
    }
}

impl Drop for PromptProgress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn describe(sum: &PhaseReport) -> String {
    let mut text = format!("{:.1} tokens/s", sum.tokens_per_second());
    if sum.counts.own_selections > 0 {
        text += &format!(
            " | hits {:.0} % | flash {} a token, {:.0} % waiting",
            100.0 * sum.counts.hit_rate(),
            report::size(sum.traffic.flash_bytes / sum.tokens.max(1) as u64),
            100.0 * sum.traffic.waited.as_secs_f64() / sum.time.as_secs_f64().max(f64::MIN_POSITIVE),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_engine::routing::Counts;

    #[test]
    fn the_status_tells_speed_hits_and_traffic() {
        let mut sum = PhaseReport { tokens: 4, time: Duration::from_secs(2), ..PhaseReport::default() };
        assert_eq!(describe(&sum), "2.0 tokens/s");
        sum.counts = Counts { own_selections: 12, selections: 8, hits: 6, misses: 2, ..Counts::default() };
        sum.traffic.flash_bytes = 4 << 20;
        sum.traffic.waited = Duration::from_millis(500);
        assert_eq!(describe(&sum), "2.0 tokens/s | hits 75 % | flash 1.0 MiB a token, 25 % waiting");
    }
}
