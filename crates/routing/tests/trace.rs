//! Traces come back as they were written, damage of any kind is an error, and a replay follows its rule.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests do")]

use moce_routing::{
    Phase, Precision, ScoreKind, ScoreReplay, Start, StoredScores, TextStart, TouchOrder, TraceError, TraceHeader,
    TraceLayer, TraceModel, TraceReader, TraceToken, TraceWriter,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

/// A token as its parts: id, phase, flags, and per layer the selection and the scores.
type Parts = (Option<u32>, bool, Option<TextStart>, Vec<(Vec<u32>, Vec<f32>)>);

fn header(layers: usize, experts: usize, per_token: usize, scores: Option<StoredScores>) -> TraceHeader {
    let layer = |index: usize| TraceLayer { expert_bytes: 1000 + index as u64, capacity: per_token };
    TraceHeader {
        model: TraceModel { name: "tiny".into(), architecture: "qwen2moe".into(), fingerprint: 7, bytes: 1 << 40 },
        layers: (0..layers).map(layer).collect(),
        experts,
        experts_per_token: per_token,
        scores,
        policy: "original".into(),
        prompt_policy: "original".into(),
        eviction: "lru".into(),
        touch: TouchOrder::StrongFirst,
        start: Start::Empty,
    }
}

const F32: Option<StoredScores> = Some(StoredScores { kind: ScoreKind::Logits, precision: Precision::F32 });

fn headers() -> impl Strategy<Value = TraceHeader> {
    let kinds = select(vec![ScoreKind::Logits, ScoreKind::BiasedSigmoid]);
    let precisions = select(vec![Precision::F32, Precision::F16]);
    let scores = prop::option::of((kinds, precisions))
        .prop_map(|scores| scores.map(|(kind, precision)| StoredScores { kind, precision }));
    (1usize..4, 1usize..9, any::<prop::sample::Index>(), scores, any::<u64>(), 0..4u8, ".{0,8}", any::<bool>())
        .prop_map(|(layers, experts, per_token, scores, number, start, text, weak)| TraceHeader {
            policy: text.clone(),
            model: TraceModel { name: text, fingerprint: number, ..TraceModel::default() },
            touch: if weak { TouchOrder::WeakFirst } else { TouchOrder::StrongFirst },
            start: match start {
                0 => Start::Empty,
                1 => Start::First,
                2 => Start::Random(number),
                _ => Start::Given(vec![vec![experts as u32 - 1]; layers]),
            },
            ..header(layers, experts, 1 + per_token.index(experts), scores)
        })
}

fn tokens(header: TraceHeader) -> impl Strategy<Value = (TraceHeader, Vec<Parts>)> {
    let ids: Vec<u32> = (0..header.experts as u32).collect();
    let selection = subsequence(ids, 0..=header.experts_per_token).prop_shuffle();
    // Whole numbers up to 2,048 are exact in half precision too.
    let scores = vec((-2048i16..=2048).prop_map(f32::from), header.experts);
    let layer = vec((selection, scores), header.layers.len());
    let id = prop::option::of(0..u32::MAX);
    let start = prop::option::of(prop_oneof![Just(TextStart::Sequence), Just(TextStart::Window)]);
    vec((id, any::<bool>(), start, layer), 0..6).prop_map(move |tokens| (header.clone(), tokens))
}

fn fill(token: &mut TraceToken, parts: &Parts) {
    let (id, generated, start, layers) = parts;
    token.id = *id;
    token.phase = if *generated { Phase::Generation } else { Phase::Prompt };
    token.start = *start;
    for (layer, (selection, scores)) in layers.iter().enumerate() {
        token.set_layer(layer, selection, scores);
    }
}

fn written(header: &TraceHeader, tokens: &[Parts]) -> Vec<u8> {
    let mut writer = TraceWriter::new(Vec::new(), header.clone()).unwrap();
    let mut token = TraceToken::new(header);
    for parts in tokens {
        fill(&mut token, parts);
        writer.write(&token).unwrap();
    }
    writer.finish().unwrap()
}

/// Reads to the end; the number of tokens.
fn read(bytes: &[u8]) -> Result<u64, TraceError> {
    let mut reader = TraceReader::new(bytes)?;
    while reader.next_token()?.is_some() {}
    Ok(reader.tokens())
}

proptest! {
    #[test]
    fn what_was_written_is_read((header, parts) in headers().prop_flat_map(tokens)) {
        let bytes = written(&header, &parts);
        let mut reader = TraceReader::new(&bytes[..]).unwrap();
        prop_assert_eq!(reader.header(), &header);
        let mut expected = TraceToken::new(&header);
        for parts in &parts {
            let token = reader.next_token().unwrap().unwrap();
            fill(&mut expected, parts);
            prop_assert_eq!(token, &expected);
            for (layer, (selection, scores)) in parts.3.iter().enumerate() {
                prop_assert_eq!(&token.selection(layer).collect::<Vec<_>>(), selection);
                prop_assert_eq!(token.scores(layer), if header.scores.is_some() { &scores[..] } else { &[] });
            }
        }
        prop_assert!(reader.next_token().unwrap().is_none());
        prop_assert!(reader.next_token().unwrap().is_none());
    }

    #[test]
    fn a_changed_byte_is_noticed((header, parts) in headers().prop_flat_map(tokens), at: prop::sample::Index, change in 1..=255u8) {
        let mut bytes = written(&header, &parts);
        let at = at.index(bytes.len());
        bytes[at] ^= change;
        prop_assert!(read(&bytes).is_err(), "byte {} changed by {}", at, change);
    }

    #[test]
    fn arbitrary_bytes_are_no_trace(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
        let with_magic = [b"moce-trc\x01\0\0\0".as_slice(), &bytes].concat();
        prop_assert!(read(&with_magic).is_err());
    }
}

#[test]
fn a_trace_cut_anywhere_or_with_more_behind_is_refused() {
    let parts: Parts = (Some(5), true, None, vec![(vec![2, 0], vec![0.5, -1.0, 2.0]); 2]);
    let mut bytes = written(&header(2, 3, 2, F32), &[parts.clone(), parts]);
    assert_eq!(read(&bytes).unwrap(), 2);
    for length in 0..bytes.len() {
        assert!(matches!(read(&bytes[..length]), Err(TraceError::Truncated { .. })), "cut at {length}");
    }
    bytes.push(0);
    assert!(matches!(read(&bytes), Err(TraceError::Malformed { .. })));
}

/// The checksum of the format, so that a damaged trace looks whole.
fn reseal(bytes: &mut [u8]) {
    let (body, seal) = bytes.split_at_mut(bytes.len() - 8);
    let step = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    seal.copy_from_slice(&body.iter().fold(0xcbf2_9ce4_8422_2325, step).to_le_bytes());
}

#[test]
fn fields_that_cannot_be_are_refused_even_under_a_right_checksum() {
    let header = header(1, 3, 2, F32);
    let good = written(&header, &[(Some(5), true, None, vec![(vec![2, 0], vec![0.5, -1.0, 2.0])])]);
    let token = good.len() - 24 - header.token_bytes() as usize;
    let changes: [(&str, usize, &[u8]); 14] = [
        ("contents", 12, &[2]),
        ("kind", 16, &[9]),
        ("no layers", 20, &[0]),
        ("no experts", 24, &[0, 0]),
        ("more a token than there are", 28, &[4]),
        ("touch", 32, &[2]),
        ("start", 36, &[4]),
        ("capacity", 72, &[4]),
        ("flags", token, &[8]),
        ("an expert twice", token + 8, &[0, 0, 0, 0]),
        ("an expert that is none", token + 8, &[3, 0]),
        ("an expert behind none", token + 8, &[0xff, 0xff]),
        ("not a number", token + 12, &f32::NAN.to_le_bytes()),
        ("the number of tokens", good.len() - 16, &[2]),
    ];
    for (what, at, change) in changes {
        let mut bytes = good.clone();
        bytes[at..at + change.len()].copy_from_slice(change);
        reseal(&mut bytes);
        let error = read(&bytes).err().unwrap_or_else(|| panic!("{what} was accepted"));
        assert!(matches!(error, TraceError::Malformed { .. }), "{what}: {error}");
    }
    let mut bytes = good;
    bytes[8] = 2;
    assert!(matches!(read(&bytes), Err(TraceError::Version { found: 2, known: 1 })));
}

/// Each count within its own limit, all experts together not: a simulation would hold tens of gigabytes for them.
#[test]
fn too_many_experts_in_all_and_too_large_ones_are_refused() {
    let good = written(&header(4096, 64, 2, None), &[]);
    // Magic, version, contents, kind, layers; then the number of experts. The first layer stands behind 8 numbers of 4 bytes and 3 of 8.
    let (experts, first_layer) = (8 + 4 * 4, 8 + 8 * 4 + 3 * 8);
    for (what, at, change) in [
        ("experts of all layers", experts, &65_u32.to_le_bytes()[..]),
        ("bytes of an expert", first_layer, &((1_u64 << 40) + 1).to_le_bytes()),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + change.len()].copy_from_slice(change);
        reseal(&mut bytes);
        let message = read(&bytes).unwrap_err().to_string();
        assert!(message.contains(what) && message.contains("expected at most"), "{message}");
    }
    assert_eq!(read(&good).unwrap(), 0);
}

#[test]
fn a_header_that_claims_much_gets_no_memory() {
    // The most layers, experts of them together and experts per token: a token would take 1.6 MB, and there is not one byte of it.
    let mut bytes = written(&header(4096, 64, 64, F32), &[]);
    bytes.truncate(bytes.len() - 24);
    let found = allocation_counter::measure(|| {
        let mut reader = TraceReader::new(&bytes[..]).unwrap();
        assert!(matches!(reader.next_token(), Err(TraceError::Truncated { .. })));
    });
    assert!(found.bytes_max < 1 << 20, "{} bytes", found.bytes_max);
}

#[test]
fn what_cannot_be_a_trace_is_not_written() {
    let mut huge = header(2, 4, 2, F32);
    huge.layers[1].expert_bytes = (1 << 40) + 1;
    let many = header(4096, 65, 2, F32);
    for wrong in
        [header(0, 4, 2, F32), header(1, 0, 0, F32), header(1, 4, 5, F32), header(1, 65_536, 2, F32), huge, many]
    {
        assert!(matches!(TraceWriter::new(Vec::new(), wrong), Err(TraceError::Unwritable { .. })));
    }
    let lists = Start::Given(vec![vec![1, 1]]);
    let wrong = TraceHeader { start: lists, ..header(1, 4, 2, F32) };
    assert!(matches!(TraceWriter::new(Vec::new(), wrong), Err(TraceError::Unwritable { .. })));

    let half = Some(StoredScores { kind: ScoreKind::Logits, precision: Precision::F16 });
    for (scores, score) in [(F32, f32::NAN), (F32, f32::INFINITY), (half, 70_000.0)] {
        let header = header(1, 2, 1, scores);
        let mut token = TraceToken::new(&header);
        token.set_layer(0, &[0], &[score, 0.0]);
        let mut writer = TraceWriter::new(Vec::new(), header).unwrap();
        assert!(matches!(writer.write(&token), Err(TraceError::Unwritable { .. })), "{score}");
        assert_eq!(writer.tokens(), 0);
    }
}

#[test]
fn a_replay_takes_layers_in_turn_and_tokens_around_the_end() {
    // Score of expert 0: 100 · token + layer.
    let header = header(2, 2, 1, F32);
    let token = |index: usize| -> Parts {
        let layer = |layer: usize| (vec![0], vec![(100 * index + layer) as f32, 0.0]);
        (None, false, None, vec![layer(0), layer(1)])
    };
    let bytes = written(&header, &(0..10).map(token).collect::<Vec<_>>());
    let replay = ScoreReplay::read(TraceReader::new(&bytes[..]).unwrap(), 5, 25).unwrap();
    assert_eq!(replay.tokens(), 10);
    let first = |layer, position| replay.scores(layer, position)[0];
    assert_eq!((first(0, 3), first(1, 3)), (300.0, 301.0));
    // Layers 2 and 3 take trace layers 0 and 1 from 997 tokens on, layer 4 from 2 · 997 on: 7 and 4 around the end.
    assert_eq!((first(2, 3), first(3, 3), first(4, 3)), (0.0, 1.0, 700.0));
    assert_eq!(first(0, 24), 400.0);

    assert!(replay.check(2, 1).is_ok());
    assert!(matches!(replay.check(2, 2), Err(TraceError::Shape { .. })));
}

#[test]
fn a_replay_keeps_only_what_it_needs_and_refuses_what_has_no_scores() {
    let parts: Parts = (None, false, None, vec![(vec![0], vec![1.0, 0.0])]);
    let bytes = written(&header(1, 2, 1, F32), &vec![parts.clone(); 100_000]);
    let found = allocation_counter::measure(|| {
        let replay = ScoreReplay::read(TraceReader::new(&bytes[..]).unwrap(), 2, 10).unwrap();
        assert_eq!(replay.tokens(), 100_000);
        assert_eq!(replay.scores(1, 9), [1.0, 0.0]);
    });
    assert!(found.bytes_max < 1 << 16, "{} bytes", found.bytes_max);

    let bytes = written(&header(1, 2, 1, None), &[parts]);
    let replay = ScoreReplay::read(TraceReader::new(&bytes[..]).unwrap(), 1, 10);
    assert!(matches!(replay, Err(TraceError::NoScores)));
    let bytes = written(&header(1, 2, 1, F32), &[]);
    let replay = ScoreReplay::read(TraceReader::new(&bytes[..]).unwrap(), 1, 10);
    assert!(matches!(replay, Err(TraceError::NoTokens)));
}
