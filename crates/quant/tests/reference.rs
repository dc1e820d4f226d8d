//! Encode and decode against the `gguf` Python package: blocks and weights in `fixtures/quant`, which says how they were
//! made and how the files are laid out.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::path::Path;

use moce_quant::{Format, decode, encode};

struct Fixture {
    blocks: Vec<u8>,
    decoded: Vec<f32>,
    values: Vec<f32>,
    encoded: Vec<u8>,
}

fn fixture(format: Format) -> Fixture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quant");
    let file = std::fs::read(folder.join(format!("{}.bin", format.name()))).unwrap();
    let mut rest = &file[..];
    let mut take = |bytes: usize| {
        let (taken, after) = rest.split_at(bytes);
        rest = after;
        taken.to_vec()
    };
    let floats = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect::<Vec<f32>>();
    let counts: Vec<usize> = take(8).as_chunks().0.iter().map(|&count| u32::from_le_bytes(count) as usize).collect();
    let [decode_count, encode_count] = counts[..] else { unreachable!("eight bytes are two counts") };
    let blocks = take(decode_count * format.block_bytes());
    let decoded = floats(take(decode_count * format.block_len() * 4));
    let values = floats(take(encode_count * format.block_len() * 4));
    let encoded = take(encode_count * format.block_bytes());
    assert!(rest.is_empty() && decode_count >= 80 && encode_count >= 90, "{} is cut or too long", format.name());
    Fixture { blocks, decoded, values, encoded }
}

#[test]
fn decode_gives_the_reference_bits() {
    for format in Format::ALL {
        let fixture = fixture(format);
        let mut out = vec![0.0; fixture.decoded.len()];
        decode(format, &fixture.blocks, &mut out);
        for (i, (ours, theirs)) in out.iter().zip(&fixture.decoded).enumerate() {
            let same = ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan());
            let block = i / format.block_len();
            assert!(same, "{} block {block} weight {i}: {ours:e}, reference {theirs:e}", format.name());
        }
        // The extremes are in the fixture, or the comparison proves less than it says.
        assert!(out.iter().any(|x| x.is_nan()) && out.iter().any(|x| x.is_infinite()), "{}", format.name());
        assert!(out.iter().any(|x| x.is_subnormal() || (*x == 0.0 && x.is_sign_negative())), "{}", format.name());
    }
}

#[test]
fn encode_gives_the_reference_bytes() {
    for format in Format::ALL {
        let fixture = fixture(format);
        let mut out = vec![0; fixture.encoded.len()];
        encode(format, &fixture.values, &mut out);
        let blocks = out.chunks(format.block_bytes()).zip(fixture.encoded.chunks(format.block_bytes()));
        for (block, (ours, theirs)) in blocks.enumerate() {
            let values = &fixture.values[block * format.block_len()..][..format.block_len()];
            let half_nan = format == Format::F16 && values[0].is_nan();
            let same = if half_nan { is_half_nan(ours) && is_half_nan(theirs) } else { ours == theirs };
            assert!(same, "{} block {block}, {values:?}: {ours:02x?}, reference {theirs:02x?}", format.name());
        }
    }
}

fn is_half_nan(bytes: &[u8]) -> bool {
    let code = u16::from_le_bytes([bytes[0], bytes[1]]);
    code & 0x7c00 == 0x7c00 && code & 0x03ff != 0
}
