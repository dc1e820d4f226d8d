//! Short names of long things, by 64-bit FNV-1a: to tell whether two runs had the same.

use fnv::FnvHasher;
use moce_engine::routing::Start;
use std::hash::Hasher;

/// As 16 hexadecimal digits.
pub(crate) fn fingerprint<'t>(texts: impl IntoIterator<Item = &'t [u8]>) -> String {
    let mut hash = FnvHasher::default();
    texts.into_iter().for_each(|text| hash.write(text));
    format!("{:016x}", hash.finish())
}

/// What is cached at the start; of given lists the fingerprint.
pub(crate) fn start_text(start: &Start) -> String {
    match start {
        Start::Given(layers) => format!("given:{}", fingerprint([format!("{layers:?}").as_bytes()])),
        start => start.to_string(),
    }
}
