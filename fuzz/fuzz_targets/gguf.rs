//! Arbitrary bytes as a GGUF file: refused with an error, or written and read back equal.

#![no_main]

#[path = "../../crates/gguf/tests/reread/mod.rs"]
mod reread;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    reread::check(bytes);
});
