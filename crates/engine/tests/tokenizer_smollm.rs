//! The shipped demo model's tokenizer against ids that llama.cpp gave for the same vocabulary (fixtures/tokenizer).

#![allow(clippy::unwrap_used)] // in helpers of tests

use moce_engine::tokenizer::{ControlTokens, SpecialTokens, TokenType, Tokenizer};
use moce_gguf::Gguf;
use moce_testkit::demo_model;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(Gguf::open(&demo_model()).unwrap().metadata()).unwrap()
}

fn fixture() -> Value {
    let json = std::fs::read(repository().join("fixtures/tokenizer/smollm.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn ids_are_llama_cpps() {
    let (tokenizer, fixture) = (tokenizer(), fixture());
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, SpecialTokens::Parse).unwrap(), ids(&case["parsed"]), "parsed: {text:?}");
        assert_eq!(tokenizer.encode(text, SpecialTokens::AsText).unwrap(), ids(&case["as_text"]), "as text: {text:?}");
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), ids(&case["parsed"]), "this vocabulary adds nothing");
    }
}

#[test]
fn texts_are_llama_cpps() {
    let (tokenizer, fixture) = (tokenizer(), fixture());
    for case in fixture["cases"].as_array().unwrap() {
        let ids = ids(&case["parsed"]);
        let shown = tokenizer.decode(&ids, ControlTokens::Show).unwrap();
        let hidden = tokenizer.decode(&ids, ControlTokens::Hide).unwrap();
        assert_eq!(String::from_utf8(shown).unwrap(), case["shown"].as_str().unwrap());
        assert_eq!(String::from_utf8(hidden).unwrap(), case["hidden"].as_str().unwrap());
        let (mut decoder, mut streamed) = (tokenizer.decoder(), String::new());
        ids.iter().for_each(|&id| decoder.push(id, &mut streamed));
        decoder.finish(&mut streamed);
        assert_eq!(streamed, case["hidden"].as_str().unwrap());
        let lost = tokenizer.lost_bytes(case["text"].as_str().unwrap());
        assert_eq!(lost > 0, case["shown"] != case["text"], "{}", case["text"]);
    }
}

#[test]
fn the_vocabulary_is_llama_cpps() {
    let (tokenizer, fixture) = (tokenizer(), fixture());
    assert_eq!(Some(tokenizer.vocabulary_size() as u64), fixture["vocabulary_size"].as_u64());
    assert_eq!(tokenizer.bos().map(u64::from), fixture["bos"].as_u64());
    assert_eq!(tokenizer.eos().map(u64::from), fixture["eos"].as_u64());
    assert_eq!((&fixture["adds_bos"], &fixture["adds_eos"]), (&Value::Bool(false), &Value::Bool(false)));
    assert_eq!(tokenizer.end_tokens(), ids(&fixture["end_tokens"]));
    let control =
        (0..tokenizer.vocabulary_size() as u32).filter(|&id| tokenizer.token_type(id) == Some(TokenType::Control));
    assert_eq!(control.collect::<Vec<_>>(), ids(&fixture["control_tokens"]));
}
