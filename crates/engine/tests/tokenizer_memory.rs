//! What the largest vocabulary adds to the process, beside what the tokenizer says it holds. One test, so that nothing else runs beside it.

#![cfg(target_os = "linux")]

use moce_engine::tokenizer::Tokenizer;
use moce_gguf::Gguf;
use moce_testkit::data_bytes;

/// Resident memory of this process.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has it");
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kilobytes * 1024
}

#[test]
fn memory_is_what_the_tokenizer_says() {
    let Some(bytes) = data_bytes("tokenizers/ggml-vocab-qwen2.gguf") else { return };
    let gguf = Gguf::parse("qwen2", bytes).expect("a vocabulary");
    let before = resident_bytes();
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).expect("a supported vocabulary");
    let grown = resident_bytes() - before;
    // Building leaves free memory between what is kept: less than as much again.
    let said = tokenizer.memory_bytes();
    assert!((said * 9 / 10..2 * said).contains(&grown), "{grown} bytes, said to be {said}");
}
