//! Vocabularies that break the rules: each is refused, with the key, the place, expected and found in the message.

#![allow(clippy::unwrap_used)] // in helpers of tests

use moce_engine::tokenizer::{ControlTokens, SpecialTokens, Tokenizer, Vocabulary};
use moce_gguf::{Array, Gguf, Strings, Value, Writer};
use std::borrow::Cow;

/// Letters a to c, merges ab and abc, one control token.
fn good() -> Vocabulary<'static> {
    Vocabulary {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: vec!["a", "b", "c", "ab", "abc", "<|im_end|>"],
        token_types: Cow::Borrowed(&[1, 1, 1, 1, 1, 3]),
        merges: vec!["a b", "ab c"],
        eos: Some(5),
        ..Vocabulary::default()
    }
}

fn refused(change: impl FnOnce(&mut Vocabulary<'static>), message: &str) {
    let mut vocabulary = good();
    change(&mut vocabulary);
    assert_eq!(Tokenizer::new(&vocabulary).unwrap_err().to_string(), message);
}

#[test]
fn the_good_one_is_good() {
    let tokenizer = Tokenizer::new(&good()).unwrap();
    assert_eq!(tokenizer.encode("abcab", SpecialTokens::AsText).unwrap(), [4, 3]);
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    refused(|v| v.model = "bert", "unknown tokenizer model 'bert' (supported: gpt2, llama)");
    let mut vocabulary = good();
    vocabulary.pre = Some("llama-bpe");
    let message = Tokenizer::new(&vocabulary).unwrap_err().to_string();
    assert!(message.starts_with("unknown pre-tokenizer 'llama-bpe' (supported: gpt-2, mpt, "), "{message}");
}

#[test]
fn tokens_are_there_once() {
    refused(|v| v.tokens[4] = "b", "tokens 1 and 4 are the same: \"b\"");
    refused(
        |v| v.tokens.clear(),
        "vocabulary of 0 tokens with 0 bytes (expected 1 to 2147483647 tokens, at most 4294967295 bytes)",
    );
}

#[test]
fn empty_tokens_may_repeat() {
    let mut vocabulary = good();
    vocabulary.tokens.extend(["", ""]);
    vocabulary.token_types.to_mut().extend([5, 5]);
    let tokenizer = Tokenizer::new(&vocabulary).unwrap();
    assert_eq!((tokenizer.vocabulary_size(), tokenizer.piece(7)), (8, Some(&b""[..])));
}

#[test]
fn lists_beside_the_tokens_are_as_long() {
    refused(|v| v.token_types = Cow::Borrowed(&[1, 1]), "token_type has 2 entries (expected 6, one a token)");
    refused(|v| v.token_types = Cow::Borrowed(&[1, 1, 9, 1, 1, 1]), "token_type[2] is 9 (expected 0 to 6)");
    refused(
        |v| {
            v.model = "llama";
            v.scores = Cow::Borrowed(&[0.0; 7]);
        },
        "scores has 7 entries (expected 6, one a token)",
    );
}

#[test]
fn merges_are_pairs_of_tokens_that_make_a_token() {
    for (merge, message) in [
        ("ab", "merges[2] is \"ab\": expected two tokens with a space between"),
        ("", "merges[2] is \"\": expected two tokens with a space between"),
        (" a", "merges[2] is \" a\": expected two tokens with one space between"),
        ("a ", "merges[2] is \"a \": expected two tokens with one space between"),
        ("a b c", "merges[2] is \"a b c\": expected two tokens with one space between"),
        ("x b", "merges[2] is \"x b\": its left side is no token"),
        ("a x", "merges[2] is \"a x\": its right side is no token"),
        ("b a", "merges[2] is \"b a\": its result is no token"),
        ("abc <|im_end|>", "merges[2] is \"abc <|im_end|>\": its result is no token"),
        ("a b", "merges[2] is \"a b\": the same merge stands before"),
    ] {
        refused(|v| v.merges.push(merge), message);
    }
}

#[test]
fn ids_point_into_the_vocabulary() {
    refused(|v| v.bos = Some(6), "bos_token_id is 6 (expected less than 6, the number of tokens)");
    refused(|v| v.eos = Some(u32::MAX), "eos_token_id is 4294967295 (expected less than 6, the number of tokens)");
    refused(|v| v.unknown = Some(7), "unknown_token_id is 7 (expected less than 6, the number of tokens)");
    refused(|v| v.end = vec![1, 9], "an end token's id is 9 (expected less than 6, the number of tokens)");
    refused(|v| v.add_bos = Some(true), "add_bos_token is set, but there is no bos_token_id");
}

#[test]
fn byte_tokens_name_bytes() {
    for text in ["d", "<0x4>", "<0x041>", "<0x+1>", "<0xGG>", "0x41"] {
        let mut vocabulary = good();
        vocabulary.tokens.push(text);
        vocabulary.token_types.to_mut().push(6);
        let message = Tokenizer::new(&vocabulary).unwrap_err().to_string();
        assert!(message.starts_with("token 6 is a byte token, but "), "{message}");
    }
}

#[test]
fn ids_to_decode_are_in_the_vocabulary() {
    let tokenizer = Tokenizer::new(&good()).unwrap();
    let error = tokenizer.decode(&[0, 6], ControlTokens::Show).unwrap_err();
    assert_eq!(error.to_string(), "token id 6 (expected less than 6, the number of tokens)");
}

/// A file with these tokens and merges.
fn file(tokens: &[&[u8]], merges: &[&[u8]]) -> Gguf {
    let strings = |strings: &[&[u8]]| Value::Array(Array::String(strings.iter().collect::<Strings>()));
    let mut writer = Writer::new();
    for (key, value) in [
        ("tokenizer.ggml.model", Value::from("gpt2")),
        ("tokenizer.ggml.pre", Value::from("gpt-2")),
        ("tokenizer.ggml.tokens", strings(tokens)),
        ("tokenizer.ggml.merges", strings(merges)),
        ("tokenizer.ggml.eot_token_id", Value::U32(1)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.bos_token_id", Value::U64(0)),
        // A prompt does not end with it, and nothing reads what would fill batches: such files exist.
        ("tokenizer.ggml.add_eos_token", Value::Bool(true)),
        ("tokenizer.ggml.eos_token_id", Value::U32(1)),
        ("tokenizer.ggml.padding_token_id", Value::U32(u32::MAX)),
    ] {
        writer.set(key, value).unwrap();
    }
    Gguf::parse("drawn.gguf", writer.to_bytes(|_, _| Ok(())).unwrap()).unwrap()
}

#[test]
fn files_are_read_as_they_say() {
    let gguf = file(&[b"a", b"b", b"ab"], &[b"a b"]);
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    assert_eq!(tokenizer.end_tokens(), [1]);
    assert_eq!(tokenizer.encode_prompt("abb").unwrap(), [0, 2, 1]);
}

#[test]
fn files_have_utf8_strings() {
    let message = |tokens, merges| Tokenizer::from_gguf(file(tokens, merges).metadata()).unwrap_err().to_string();
    assert_eq!(message(&[b"a", b"\xff"], &[]), "tokens[1] is not UTF-8");
    assert_eq!(message(&[b"a", b"b"], &[b"a \xc3"]), "merges[0] is not UTF-8");
}

#[test]
fn files_have_the_keys_that_are_needed() {
    let gguf = Gguf::parse("drawn.gguf", Writer::new().to_bytes(|_, _| Ok(())).unwrap()).unwrap();
    let message = Tokenizer::from_gguf(gguf.metadata()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.ggml.model") && message.contains("drawn.gguf"), "{message}");
}
