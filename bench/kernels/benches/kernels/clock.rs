//! Samples of a rate on a machine that others use too.

use moce_kernels::Cpu;
use std::fs;
use std::time::Instant;

/// Rates (units per second) of one thing that is measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) const fn new() -> Samples {
        Samples(Vec::new())
    }

    /// Times `work`, which does `amount` units.
    ///
    /// One thread: by its own CPU time. More: by wall time; a sample in which any thread of this process lost its processor is not
    /// counted, and taken again (a few times).
    pub(crate) fn take(&mut self, cpu: &Cpu, amount: f64, mut work: impl FnMut()) {
        const ATTEMPTS: usize = 3;
        if cpu.threads() == 1 {
            let start = cpu_seconds();
            work();
            self.0.push(amount / (cpu_seconds() - start));
            return;
        }
        for _ in 0..ATTEMPTS {
            let switches = context_switches();
            // Workers asleep would be woken inside the sample.
            cpu.dots(10_000);
            let start = Instant::now();
            work();
            let seconds = start.elapsed().as_secs_f64();
            if context_switches() == switches {
                self.0.push(amount / seconds);
                return;
            }
        }
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

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// How often threads of this process were taken off a processor or slept.
fn context_switches() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let status = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    status
        .flat_map(|status| {
            let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
            lines.filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok()).collect::<Vec<_>>()
        })
        .sum()
}
