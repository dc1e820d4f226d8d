//! What is stored is the rounded value, at its place, whatever the order of storing.

use super::*;
use crate::Cpu;
use crate::lanes::{LANES, Lanes, Operation};
use crate::twin::{Random, assert_bits, on_every_cpu};
use moce_quant::Format;

fn format(kv_type: KvType) -> Format {
    match kv_type {
        KvType::F32 => Format::F32,
        KvType::F16 => Format::F16,
        KvType::Q8_0 => Format::Q8_0,
    }
}

/// Through the codecs of `moce-quant`.
fn rounded(kv_type: KvType, values: &[f32]) -> Vec<f32> {
    let format = format(kv_type);
    let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
    moce_quant::encode(format, values, &mut bytes);
    let mut out = vec![0.0; values.len()];
    moce_quant::decode(format, &bytes, &mut out);
    out
}

struct Read<'a, E: Element> {
    head: KvHead<'a, E>,
    positions: usize,
}

/// `[positions, key_dim + value_dim]`
impl<E: Element> Operation for Read<'_, E> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> Vec<f32> {
        let mut out = Vec::new();
        let mut chunk = [0.0; LANES];
        for position in 0..self.positions {
            let group = self.head.key_group(position / LANES);
            for d in 0..self.head.key_dim {
                l.store(group.dimension(l, d), &mut chunk);
                out.push(chunk[position % LANES]);
            }
            for c in 0..self.head.value_dim.div_ceil(LANES) {
                l.store(self.head.value(l, position, c), &mut chunk);
                out.extend(&chunk[..(self.head.value_dim - c * LANES).min(LANES)]);
            }
        }
        out
    }
}

fn read(cpu: &Cpu, cache: &KvCache, layer: usize, kv_head: usize, positions: usize) -> Vec<f32> {
    match cache.shape.kv_type {
        KvType::F32 => cpu.on_lanes(Read::<F32> { head: cache.head(layer, kv_head), positions }),
        KvType::F16 => cpu.on_lanes(Read::<F16> { head: cache.head(layer, kv_head), positions }),
        KvType::Q8_0 => cpu.on_lanes(Read::<Q8> { head: cache.head(layer, kv_head), positions }),
    }
}

#[test]
fn what_comes_back_is_the_rounded_value() {
    let mut random = Random::new(21);
    for (kv_type, key_dim, value_dim) in [
        (KvType::F32, 64, 64),
        (KvType::F32, 5, 33),
        (KvType::F16, 64, 64),
        (KvType::F16, 20, 7),
        (KvType::Q8_0, 64, 64),
        (KvType::Q8_0, 32, 96),
    ] {
        for (context, tokens, kv_heads, layers) in [(1, 1, 1, 1), (37, 37, 3, 2), (300, 290, 5, 1)] {
            let shape = KvShape { kv_type, context, kv_heads, key_dim, value_dim };
            let k = random.normal(tokens * kv_heads * key_dim);
            let v = random.normal(tokens * kv_heads * value_dim);
            for layer in 0..layers {
                let got = on_every_cpu(|cpu| {
                    let mut cache = KvCache::new(shape, layers).unwrap();
                    cpu.store_kv(&mut cache, layer, 0, &k, &v);
                    (0..kv_heads).flat_map(|head| read(cpu, &cache, layer, head, tokens)).collect()
                });
                let mut expected = Vec::new();
                for head in 0..kv_heads {
                    for token in 0..tokens {
                        let row = token * kv_heads + head;
                        expected.extend(rounded(kv_type, &k[row * key_dim..][..key_dim]));
                        expected.extend(rounded(kv_type, &v[row * value_dim..][..value_dim]));
                    }
                }
                assert_bits(&got, &expected);
            }
        }
    }
}

#[test]
fn storing_in_pieces_or_again_ends_the_same_and_touches_nothing_else() {
    let mut random = Random::new(22);
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let shape = KvShape { kv_type, context: 50, kv_heads: 2, key_dim: 32, value_dim: 64 };
        let (k, v) = (random.normal(40 * 64), random.normal(40 * 128));
        let (other_k, other_v) = (random.normal(30 * 64), random.normal(30 * 128));
        on_every_cpu(|cpu| {
            let mut whole = KvCache::new(shape, 3).unwrap();
            cpu.store_kv(&mut whole, 1, 5, &k, &v);
            let mut pieces = KvCache::new(shape, 3).unwrap();
            cpu.store_kv(&mut pieces, 1, 15, &other_k, &other_v);
            for i in [3, 0, 2, 1] {
                cpu.store_kv(&mut pieces, 1, 5 + 10 * i, &k[640 * i..640 * (i + 1)], &v[1280 * i..1280 * (i + 1)]);
            }
            assert!(whole.memory[..] == pieces.memory[..]);
            let layer = whole.layer_range(1);
            assert!(whole.memory[..layer.start].iter().all(|&byte| byte == 0));
            assert!(whole.memory[layer.end..].iter().all(|&byte| byte == 0));
            vec![]
        });
    }
}

#[test]
fn bytes_are_what_the_types_say() {
    let shape = |kv_type| KvShape { kv_type, context: 4096, kv_heads: 3, key_dim: 64, value_dim: 64 };
    let values = 30 * 4096 * 3 * 128;
    assert_eq!(shape(KvType::F32).bytes(30).unwrap(), values * 4);
    assert_eq!(shape(KvType::F16).bytes(30).unwrap(), values * 2);
    assert_eq!(shape(KvType::Q8_0).bytes(30).unwrap(), values / 32 * 34);
    assert_eq!(KvCache::new(shape(KvType::F16), 2).unwrap().memory.len(), shape(KvType::F16).bytes(2).unwrap());
}

#[test]
fn impossible_shapes_are_refused() {
    let good = KvShape { kv_type: KvType::Q8_0, context: 16, kv_heads: 1, key_dim: 32, value_dim: 32 };
    assert!(good.bytes(1).is_ok());
    for bad in [
        KvShape { key_dim: 48, ..good },
        KvShape { value_dim: 16, ..good },
        KvShape { context: 0, ..good },
        KvShape { kv_heads: 0, ..good },
        KvShape { context: usize::MAX, ..good },
        KvShape { kv_heads: usize::MAX / 64, ..good },
        KvShape { key_dim: usize::MAX - 31, ..good },
    ] {
        assert!(matches!(bad.bytes(1), Err(Error::KvShape { .. })), "{bad:?}");
        assert!(KvCache::new(bad, 1).is_err());
    }
    assert!(good.bytes(usize::MAX / 2).is_err());
}

#[test]
#[should_panic(expected = "2 tokens from position 15 on in a context of 16")]
fn a_position_outside_the_context_is_refused() {
    let shape = KvShape { kv_type: KvType::F16, context: 16, kv_heads: 1, key_dim: 2, value_dim: 2 };
    let cpu = Cpu::new(&crate::CpuOptions::default()).unwrap();
    cpu.store_kv(&mut KvCache::new(shape, 1).unwrap(), 0, 15, &[0.0; 4], &[0.0; 4]);
}
