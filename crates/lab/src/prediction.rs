//! How fast a model will generate, from its memory plan and what the machine gives: the floor that no overlap of reading and computing
//! can beat.
//!
//! Per token: Σ over MoE layers of max(flash time of the misses, work of the shared expert and of all routed ones but one) + the work of
//! the expert that lands last, plus the weights of attention, head and all else at the rate at which they are multiplied, plus keys and
//! values at the rate at which memory is read. The number of misses of a layer is taken as binomial.

use moce_engine::MemoryPlan;
use serde::Serialize;

/// What the machine gives.
#[derive(Clone, Debug, Serialize)]
pub struct MachineRates {
    /// Bytes of experts a second from flash in bursts of 1, 2, 4, ... experts, each drained before the next.
    pub flash: Vec<f64>,
    /// Bytes of experts a second through the kernels, one token at a time.
    pub experts: f64,
    /// Bytes of large dense matrices a second through the kernels, one token at a time.
    pub dense: f64,
    /// Bytes a second that plain reads of memory reach.
    pub memory: f64,
}

impl MachineRates {
    /// The burst sizes of [`MachineRates::flash`] up to `most`.
    pub fn bursts(most: usize) -> impl Iterator<Item = usize> {
        (0..usize::BITS).map(|power| 1 << power).take_while(move |&burst| burst <= most.max(1))
    }

    /// Flash rate of a burst of `experts`, on a straight line between the measured sizes.
    pub fn flash_rate(&self, experts: f64) -> f64 {
        let Some(last) = self.flash.len().checked_sub(1) else { return f64::INFINITY };
        let place = experts.max(1.0).log2().min(last as f64);
        let below = (place.floor() as usize).min(last);
        let above = (below + 1).min(last);
        self.flash[below] + (place - below as f64) * (self.flash[above] - self.flash[below])
    }
}

/// A verdict on a speed, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// 15 tokens/s and more: faster than people read.
    Fast,
    /// 8 and more: as fast as people read.
    Good,
    /// 3 and more.
    Usable,
    /// Less.
    Slow,
}

impl Verdict {
    /// Of a generation speed in tokens/s.
    pub fn of(tokens_per_second: f64) -> Verdict {
        match tokens_per_second {
            15.0.. => Verdict::Fast,
            8.0.. => Verdict::Good,
            3.0.. => Verdict::Usable,
            _ => Verdict::Slow,
        }
    }

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Fast => "fast",
            Verdict::Good => "good",
            Verdict::Usable => "usable",
            Verdict::Slow => "slow",
        }
    }
}

/// Miss rates of LRU caches with trained routers, as shares of the uncached experts, which is the miss rate of routing by chance: from
/// 0.44 (Phi-3.5-MoE) to 0.8 (Mixtral) at half the experts, 0.65 in the middle (Qwen1.5-MoE 0.7, DeepSeek-V2-Lite 0.56).
pub const TRAINED_ROUTING: [f64; 3] = [0.8, 0.65, 0.44];

/// Misses by chance in each MoE layer, as a share of the choices: the uncached share.
pub fn misses_by_chance(plan: &MemoryPlan) -> Vec<f64> {
    let layers = plan.resident.iter().zip(&plan.experts);
    layers.map(|(&resident, &experts)| 1.0 - resident.min(experts) as f64 / experts.max(1) as f64).collect()
}

/// Seconds that one generated token takes at least, where `miss_rates` are those of the MoE layers and the token attends to so many
/// `positions`.
pub fn token_seconds(plan: &MemoryPlan, miss_rates: &[f64], rates: &MachineRates, positions: f64) -> f64 {
    let keys_and_values = plan.kv_bytes as f64 * positions / plan.context.max(1) as f64 / rates.memory;
    let shared = plan.shared_expert_bytes.saturating_mul(plan.experts.len() as u64).min(plan.dense_token_bytes);
    let rest = (plan.dense_token_bytes - shared) as f64 / rates.dense;
    let layers = plan.expert_bytes.iter().zip(miss_rates);
    let layers = layers.map(|(&bytes, &miss_rate)| {
        let k = plan.experts_per_token.max(1);
        let work = bytes as f64 / rates.experts;
        let shared = shared as f64 / plan.experts.len() as f64 / rates.dense;
        let time = |misses: usize| {
            let flash = misses as f64 * bytes as f64 / rates.flash_rate(misses as f64);
            flash.max(shared + (k - 1) as f64 * work) + work
        };
        (0..=k).map(|misses| binomial(k, misses, miss_rate) * time(misses)).sum::<f64>()
    });
    rest + keys_and_values + layers.sum::<f64>()
}

/// The probability of `hits` successes in `trials`.
fn binomial(trials: usize, hits: usize, probability: f64) -> f64 {
    let ways = (0..hits).fold(1.0, |ways, i| ways * (trials - i) as f64 / (i + 1) as f64);
    ways * probability.powi(hits as i32) * (1.0 - probability).powi((trials - hits) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_engine::{Budget, Engine, EngineOptions};
    use moce_testkit::TinyModel;

    fn plan() -> MemoryPlan {
        let options = EngineOptions { memory: Budget::All, ..EngineOptions::default() };
        Engine::plan_for(&TinyModel::open("qwen2moe").gguf, &options).unwrap()
    }

    #[test]
    fn probabilities_of_all_counts_sum_to_one() {
        for probability in [0.0, 0.3, 1.0] {
            let sum: f64 = (0..=6).map(|hits| binomial(6, hits, probability)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{probability}: {sum}");
        }
        assert!((binomial(4, 2, 0.5) - 0.375).abs() < 1e-12);
    }

    #[test]
    fn without_misses_a_token_takes_the_time_of_its_weights() {
        let plan = plan();
        let rates = MachineRates { flash: vec![1e3], experts: 1e9, dense: 1e9, memory: 1e9 };
        let weights: u64 = plan.expert_bytes.iter().map(|bytes| bytes * plan.experts_per_token as u64).sum();
        let expected = (plan.dense_token_bytes + weights) as f64 / 1e9;
        let none = vec![0.0; plan.experts.len()];
        assert!((token_seconds(&plan, &none, &rates, 0.0) / expected - 1.0).abs() < 1e-9);
        // A full context adds the whole cache of keys and values.
        let full = token_seconds(&plan, &none, &rates, plan.context as f64);
        assert!((full / (expected + plan.kv_bytes as f64 / 1e9) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn with_slow_flash_a_token_takes_the_time_of_its_reads_and_the_last_experts() {
        let plan = plan();
        let rates = MachineRates { flash: vec![1e3, 2e3, 4e3], experts: 1e12, dense: 1e12, memory: 1e12 };
        let all = vec![1.0; plan.experts.len()];
        let k = plan.experts_per_token as f64;
        let bytes: u64 = plan.expert_bytes.iter().sum();
        let expected = bytes as f64 * k / rates.flash_rate(k);
        assert!((token_seconds(&plan, &all, &rates, 0.0) / expected - 1.0).abs() < 1e-4);
    }

    #[test]
    fn rates_between_measured_bursts_lie_between() {
        let rates = MachineRates { flash: vec![1.0, 2.0, 4.0], experts: 1.0, dense: 1.0, memory: 1.0 };
        assert_eq!([0.5, 1.0, 2.0, 4.0, 9.0].map(|burst| rates.flash_rate(burst)), [1.0, 1.0, 2.0, 4.0, 4.0]);
        let between = rates.flash_rate(3.0);
        assert!((2.0..4.0).contains(&between), "{between}");
        assert_eq!(MachineRates::bursts(6).collect::<Vec<_>>(), [1, 2, 4]);
    }
}
