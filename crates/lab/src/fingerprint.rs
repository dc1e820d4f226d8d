//! Short names of long things, by 64-bit FNV-1a: to tell whether two runs had the same.

use moce_engine::routing::Start;

pub(crate) fn fnv_1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    bytes.into_iter().fold(0xCBF2_9CE4_8422_2325, add)
}

/// What is cached at the start; of given lists the fingerprint.
pub(crate) fn start_text(start: &Start) -> String {
    match start {
        Start::Given(layers) => format!("given:{:016x}", fnv_1a(format!("{layers:?}").into_bytes())),
        start => start.to_string(),
    }
}
