//! One folder per instruction set; the same file name in each holds the same operation.

pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;
