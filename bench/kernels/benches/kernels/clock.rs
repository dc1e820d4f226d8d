//! Samples of a rate on a machine that others use too.

use moce_kernels::Cpu;
use rustix::time::{ClockId, clock_gettime};

/// Rates (units per second) of one thing that is measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) const fn new() -> Samples {
        Samples(Vec::new())
    }

    /// Times `work`, which does `amount` units.
    ///
    /// One thread: by its own CPU time. More: by wall time; a sample in which the calling thread lost its processor, or had to sleep
    /// because another one had lost its own, is not counted, and the answer is false: take another, on other data.
    pub(crate) fn take(&mut self, cpu: &Cpu, amount: f64, work: impl FnOnce()) -> bool {
        if cpu.threads() > 1 {
            // Workers asleep would be woken inside the sample.
            cpu.dots(20_000);
        }
        let start = [ClockId::Monotonic, ClockId::ThreadCPUTime].map(seconds);
        work();
        let end = [ClockId::Monotonic, ClockId::ThreadCPUTime].map(seconds);
        let [wall, computed] = [0, 1].map(|i| end[i] - start[i]);
        if cpu.threads() == 1 {
            self.0.push(amount / computed);
        } else if computed > 0.97 * wall {
            self.0.push(amount / wall);
        } else {
            return false;
        }
        true
    }

    fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() * percent / 100).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// Median and spread, times `factor`.
    pub(crate) fn show(&self, factor: f64) -> String {
        let [low, median, high] = [10, 50, 90].map(|percent| self.percentile(percent) * factor);
        format!("{median:5.1} ({low:.1} .. {high:.1})")
    }
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
