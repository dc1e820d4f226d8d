//! For tests: one runner over everything that may not change a bit, and the random numbers that it is fed.

use crate::{Cpu, CpuOptions, Isa};

/// Runs `compute` with every instruction set that this CPU has and 1, 2 and 3 threads; returns the scalar twin's result after
/// comparing all others with it.
pub(crate) fn on_every_cpu(compute: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    let mut twin: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        for threads in [1, 2, 3] {
            let cpu = CPUS.with(|cpus| cpus.cpu(isa, threads));
            let got = compute(&cpu);
            match &twin {
                None => twin = Some(got),
                Some(twin) => {
                    assert!(same_bits(&got, twin), "{isa} with {threads} threads differs:\n{}", difference(&got, twin));
                }
            }
        }
    }
    twin.expect("the scalar twin is always available")
}

/// Asserts equal bits; NaNs are all equal.
#[track_caller]
pub(crate) fn assert_bits(got: &[f32], expected: &[f32]) {
    assert!(same_bits(got, expected), "{}", difference(got, expected));
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(*a, *b))
}

fn is_same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

fn difference(got: &[f32], expected: &[f32]) -> String {
    match got.iter().zip(expected).position(|(a, b)| !is_same(*a, *b)) {
        Some(at) => format!("first at {at}: got {:e}, expected {:e}", got[at], expected[at]),
        None => format!("{} values, expected {}", got.len(), expected.len()),
    }
}

thread_local! {
    static CPUS: Cpus = const { Cpus(std::cell::RefCell::new(Vec::new())) };
}

/// Started once a test thread, since starting and ending threads takes longer than most cases.
struct Cpus(std::cell::RefCell<Vec<std::rc::Rc<Cpu>>>);

impl Cpus {
    fn cpu(&self, isa: Isa, threads: usize) -> std::rc::Rc<Cpu> {
        let mut cpus = self.0.borrow_mut();
        if let Some(cpu) = cpus.iter().find(|cpu| cpu.isa() == isa && cpu.threads() == threads) {
            return cpu.clone();
        }
        let options = CpuOptions { isa: Some(isa), threads: Some(threads), affinity: None };
        cpus.push(std::rc::Rc::new(Cpu::new(&options).unwrap()));
        cpus[cpus.len() - 1].clone()
    }
}

/// splitmix64, and what is made of it.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn uniform(&mut self) -> f32 {
        ((self.bits() >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }

    /// Roughly normal: four uniforms, variance 4/3.
    pub(crate) fn normal(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (0..4).map(|_| self.uniform()).sum()).collect()
    }
}
