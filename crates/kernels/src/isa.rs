//! Instruction sets: which exist, which this CPU has, and which one is used.

use crate::Error;
use std::fmt;

/// An instruction set that kernels are written for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust: the twin that every other one is compared with.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL, VBMI and VNNI.
    Avx512Vnni,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512Vnni];

    /// The name used by `MOCE_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512vnni",
        }
    }

    /// Whether this CPU can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.is_available()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512vbmi")
                    && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The instruction sets that this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest one that this CPU can run.
    pub fn best() -> Isa {
        Isa::available().last().unwrap_or(Isa::Scalar)
    }

    /// Reads a name as `MOCE_ISA` gives it.
    ///
    /// # Errors
    /// The name is unknown, or this CPU lacks the instruction set.
    pub fn parse(name: &str) -> Result<Isa, Error> {
        Isa::named(name)?.require()
    }

    /// The instruction set of a name, whether this CPU has it or not: for files that are made for another machine.
    ///
    /// # Errors
    /// The name is unknown.
    pub fn named(name: &str) -> Result<Isa, Error> {
        let unknown = || Error::UnknownIsa { given: name.to_owned(), known: names(Isa::ALL) };
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(unknown)
    }

    /// This one, if the CPU has it.
    ///
    /// # Errors
    /// It has not.
    pub fn require(self) -> Result<Isa, Error> {
        if self.is_available() { Ok(self) } else { Err(Error::IsaAbsent(self, names(Isa::available()))) }
    }
}

fn names(isas: impl IntoIterator<Item = Isa>) -> String {
    isas.into_iter().map(Isa::name).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
