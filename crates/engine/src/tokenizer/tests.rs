//! The tokenizer as a whole on drawn vocabularies: byte pairs as defined, text back as it was, no panic whatever a file says.

use super::{ControlTokens, Error, SpecialTokens, Tokenizer, Vocabulary, byte_level};
use proptest::prelude::*;
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// A vocabulary that owns its strings.
#[derive(Clone, Debug, Default)]
struct Owned {
    model: String,
    pre: String,
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
    special: [Option<u32>; 4],
    add: [Option<bool>; 2],
}

impl Owned {
    /// All 256 bytes, and a token for each merge of two places in the tokens so far that makes a new one.
    fn byte_level(pre: &str, merges: &[(prop::sample::Index, prop::sample::Index)]) -> Owned {
        let mut owned = Owned { model: "gpt2".into(), pre: pre.into(), ..Owned::default() };
        // The letters that the drawn texts have come first, so that merges hit them.
        let (common, other): (Vec<u8>, Vec<u8>) = (0..=255).partition(|byte| b" ab1\n'".contains(byte));
        owned.tokens = common.iter().chain(&other).map(|&byte| byte_level::letter(byte).into()).collect();
        for (left, right) in merges {
            let mergeable = |index: &prop::sample::Index, tokens: &[String]| {
                let place = index.index(tokens.len() - 250);
                tokens[if place < 6 { place } else { place + 250 }].clone()
            };
            let (left, right) = (mergeable(left, &owned.tokens), mergeable(right, &owned.tokens));
            let joined = format!("{left}{right}");
            if joined.len() < 40 && !owned.tokens.contains(&joined) {
                owned.tokens.push(joined);
                owned.merges.push(format!("{left} {right}"));
            }
        }
        owned.types = vec![1; owned.tokens.len()];
        owned.tokens.push("<|im_end|>".into());
        owned.types.push(3);
        owned
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::new(&Vocabulary {
            model: &self.model,
            pre: (!self.pre.is_empty()).then_some(&self.pre),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            scores: Cow::Borrowed(&self.scores),
            token_types: Cow::Borrowed(&self.types),
            merges: self.merges.iter().map(String::as_str).collect(),
            bos: self.special[0],
            eos: self.special[1],
            unknown: self.special[2],
            end: self.special.into_iter().flatten().collect(),
            add_bos: self.add[0],
            add_space_prefix: self.add[1],
            strip_after_special: false,
        })
    }

    /// Byte pairs by definition: again and again the earliest merge that applies, everywhere from the left.
    fn by_definition(&self, words: &[&str]) -> Vec<u32> {
        let mut ids = Vec::new();
        for word in words {
            let mut pieces: Vec<String> = word.bytes().map(|byte| byte_level::letter(byte).into()).collect();
            let rank = |pair: &[String]| self.merges.iter().position(|merge| *merge == pair.join(" "));
            while let Some((_, left)) =
                pieces.windows(2).enumerate().filter_map(|(at, pair)| Some((rank(pair)?, at))).min()
            {
                let right = pieces.remove(left + 1);
                pieces[left].push_str(&right);
            }
            ids.extend(pieces.iter().map(|piece| self.tokens.iter().position(|token| token == piece).unwrap() as u32));
        }
        ids
    }
}

const PRE: [&str; 3] = ["gpt-2", "smollm", "qwen2"];

fn merges() -> impl Strategy<Value = Vec<(prop::sample::Index, prop::sample::Index)>> {
    proptest::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..40)
}

/// Mostly what the merges are about, sometimes anything.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[ab1\n' ]{0,40}", 2 => "\\PC{0,40}", 1 => any::<String>()]
}

proptest! {
    #[test]
    fn byte_pairs_are_merged_as_defined(merges in merges(), text in "[ab1\n' ]{0,40}", pre in 0..3usize) {
        let owned = Owned::byte_level(PRE[pre], &merges);
        let words = super::pretokenizer::PreTokenizer::named(Some(PRE[pre])).unwrap();
        let words: Vec<&str> = words.words(&text).collect();
        prop_assert_eq!(words.concat(), text.as_str());
        prop_assert_eq!(owned.tokenizer().unwrap().encode(&text, SpecialTokens::AsText).unwrap(), owned.by_definition(&words));
    }

    #[test]
    fn decoding_gives_back_what_was_encoded(merges in merges(), text in text(), pre in 0..3usize) {
        let tokenizer = Owned::byte_level(PRE[pre], &merges).tokenizer().unwrap();
        for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
            let text = format!("{text}<|im_end|>{text}");
            let ids = tokenizer.encode(&text, special).unwrap();
            let parsed = ids.iter().filter(|&&id| tokenizer.is_end(id)).count();
            prop_assert_eq!(parsed, usize::from(special == SpecialTokens::Parse));
            let decoded = tokenizer.decode(&ids, ControlTokens::Show).unwrap();
            prop_assert_eq!(String::from_utf8(decoded).unwrap(), text.as_str());
            prop_assert_eq!(tokenizer.lost_bytes(&text), 0);
        }
    }

    /// A good vocabulary with some of its parts replaced by anything.
    #[test]
    fn no_vocabulary_and_no_text_panics(
        merges in merges(),
        changes in proptest::collection::vec((0..10u8, any::<prop::sample::Index>(), "[ab▁Ġ< ]{0,3}", any::<u8>()), 0..4),
        sentencepiece in any::<bool>(),
        text in text(),
    ) {
        let mut owned = Owned::byte_level("smollm", &merges);
        if sentencepiece {
            owned.model = "llama".into();
            owned.scores = (0..owned.tokens.len()).map(|id| (id % 7) as f32).collect();
        }
        for (what, place, string, number) in changes {
            let at = place.index(owned.tokens.len());
            match what {
                0 => owned.tokens[at] = string,
                1 => owned.tokens.push(string),
                2 => owned.types.resize(at + 1, i32::from(number % 8)),
                3 => owned.types.truncate(at),
                4 => owned.special[at % 4] = Some(u32::from(number) * 2),
                5 => owned.add[at % 2] = Some(number % 2 == 0),
                6 => owned.merges.push(string),
                7 => owned.merges.push(format!("{} {}", owned.tokens[at], string)),
                8 => owned.scores.truncate(at),
                _ => _ = owned.tokens.remove(at),
            }
        }
        let Ok(tokenizer) = owned.tokenizer() else { return Ok(()) };
        let mut ids = tokenizer.encode_prompt(&text).unwrap();
        ids.extend(tokenizer.encode(&text, SpecialTokens::AsText).unwrap());
        ids.extend(0..tokenizer.vocabulary_size() as u32);
        tokenizer.decode(&ids, ControlTokens::Hide).unwrap();
        let (mut decoder, mut decoded) = (tokenizer.decoder(), String::new());
        ids.iter().for_each(|&id| decoder.push(id, &mut decoded));
        decoder.finish(&mut decoded);
    }
}

#[test]
fn bytes_without_a_token_are_left_out_and_counted() {
    let mut owned = Owned::byte_level("gpt-2", &[]);
    owned.tokens.push("!!".into());
    owned.types.push(1);
    owned.merges.push("! !".into());
    let full = owned.tokenizer().unwrap();
    let byte = owned.tokens.iter().position(|token| token.starts_with(byte_level::letter(4))).unwrap();
    owned.tokens[byte] = "never".into();
    let lacking = owned.tokenizer().unwrap();
    let encode = |tokenizer: &Tokenizer, text| tokenizer.encode(text, SpecialTokens::AsText).unwrap();
    let (one, two) = (encode(&full, "!")[0], encode(&full, "!!")[0]);
    assert_eq!(encode(&full, "!\u{4}!!"), [one, byte as u32, two]);
    assert_eq!(full.lost_bytes("!\u{4}!!"), 0);
    // The neighbours of the lost byte do not become neighbours of each other.
    assert_eq!(encode(&lacking, "!\u{4}!!"), [one, two]);
    assert_eq!(lacking.lost_bytes("!\u{4}!\u{4}"), 2);
}

/// <unk>, <s> and </s> first, then text.
fn sentencepiece() -> Owned {
    let tokens = ["<unk>", "<s>", "</s>", "▁a", "▁", "a", "<", "s", ">", "<s"];
    let mut owned = Owned { model: "llama".into(), types: vec![1; tokens.len()], ..Owned::default() };
    owned.types[..3].copy_from_slice(&[2, 3, 3]);
    owned.tokens = tokens.map(String::from).into();
    owned.scores = vec![0.0; tokens.len()];
    owned
}

#[test]
fn sentencepiece_keys_have_its_trainers_defaults() {
    let mut owned = sentencepiece();
    let tokenizer = owned.tokenizer().unwrap();
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [1, 3, 0]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.end_tokens()), (Some(1), Some(2), &[2][..]));
    assert_eq!(tokenizer.decode(&[1, 3, 5, 2], ControlTokens::Hide).unwrap(), b"aa");
    // What goes on from a prompt keeps its space.
    let (mut decoder, mut text) = (tokenizer.decoder(), String::new());
    decoder.push(3, &mut text);
    assert_eq!(text, " a");
    owned.add = [Some(false), Some(false)];
    let tokenizer = owned.tokenizer().unwrap();
    assert_eq!(tokenizer.encode_prompt("a a").unwrap(), [5, 3]);
    assert_eq!(tokenizer.decode(&[3], ControlTokens::Hide).unwrap(), b" a");
}

#[test]
fn text_is_never_merged_into_a_control_token() {
    let tokenizer = sentencepiece().tokenizer().unwrap();
    assert_eq!(tokenizer.encode("<s>", SpecialTokens::AsText).unwrap(), [4, 9, 8]);
    assert_eq!(tokenizer.encode("<s>a", SpecialTokens::Parse).unwrap(), [1, 3]);
}

/// Work that grows with the square of the text takes minutes for these; what is done takes under a second.
#[test]
fn long_runs_take_no_longer_than_their_length() {
    let merge = |left, right| format!("{left} {right}");
    for pre in ["gpt-2", "smollm", "qwen2", "llama"] {
        let mut owned = Owned::byte_level(pre, &[]);
        for (left, right) in
            [("a", "a"), ("aa", "aa"), ("aaaa", "a"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("1", "1"), ("▁", "▁"), ("a", "▁")]
        {
            owned.tokens.push(format!("{left}{right}"));
            if left != "▁" && right != "▁" {
                owned.merges.push(merge(left, right));
            }
        }
        owned.tokens.extend(["▁".into(), "<|x|>".into(), "aab".into()]);
        owned.types.resize(owned.tokens.len() - 2, 1);
        owned.types.extend([3, 4]);
        if pre == "llama" {
            owned.model = pre.into();
            owned.scores = vec![0.0; owned.tokens.len()];
            owned.special[2] = Some(0);
        }
        let tokenizer = owned.tokenizer().unwrap();
        let units = ["a", " ", "\n", "1", "!", "😀", "a ", " \n", "'s", "<|x|>", "aab", "<|x", "\u{301}"];
        // The short ones first: they fail soon if anything is wrong.
        for (unit, bytes) in units.map(|unit| (unit, 1 << 17)).into_iter().chain([("a", 1 << 20), (" ", 1 << 20)]) {
            let text = unit.repeat(bytes / unit.len()) + "x"; // a run that ends the text is the easier case
            let started = Instant::now();
            let ids = tokenizer.encode(&text, SpecialTokens::Parse).unwrap();
            // Some hundred times what it takes.
            let limit = Duration::from_secs((5 * bytes as u64) >> 17);
            assert!(started.elapsed() < limit, "{pre} {bytes} bytes of {unit:?}: {:?}", started.elapsed());
            let decoded = tokenizer.decode(&ids, ControlTokens::Show).unwrap();
            let prefixed = pre == "llama"; // this vocabulary spells its bytes as letters, not as SentencePiece does
            assert!(prefixed || decoded == text.as_bytes(), "{pre} {unit:?}");
        }
    }
}
