//! What a number of misses would cost: a model of time with three constants.

use serde::Serialize;

/// Flash and compute as they were measured somewhere (`moce plan` and `moce bench --ceilings` measure them).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TimingModel {
    /// Bytes per second that flash gives to reads of experts.
    pub flash_bandwidth: f64,
    /// From asking to the first byte, in microseconds.
    pub flash_latency_us: f64,
    /// A token's time without any read, in milliseconds.
    pub compute_ms: f64,
}

impl TimingModel {
    /// Tokens per second where a token reads `bytes` and waits in `waiting_layers` layers: the experts that a layer misses are asked for
    /// together, so they wait once, and computing does not go on meanwhile. Infinite where nothing takes time.
    pub fn tokens_per_second(&self, bytes: f64, waiting_layers: f64) -> f64 {
        let reading = if bytes > 0.0 { bytes / self.flash_bandwidth } else { 0.0 };
        1.0 / (self.compute_ms / 1e3 + reading + waiting_layers * self.flash_latency_us / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computing_waiting_and_reading_add_up() {
        let timing = TimingModel { flash_bandwidth: 1e9, flash_latency_us: 100.0, compute_ms: 10.0 };
        // 10 ms + 5 ms + 20 · 0.1 ms
        assert!((timing.tokens_per_second(5e6, 20.0) - 1.0 / 0.017).abs() < 1e-9);
        assert_eq!(timing.tokens_per_second(0.0, 0.0), 100.0);
    }
}
