//! Real vocabularies against llama.cpp's own test vectors: texts in `.inp`, ids in `.out`, for every kind that is supported.

#![allow(clippy::unwrap_used)] // tests

use moce_engine::tokenizer::{ControlTokens, SpecialTokens, Tokenizer};
use moce_gguf::Gguf;
use moce_testkit::data_bytes;
use serde_json::Value;
use std::path::Path;

/// `None` if the test data is not there.
fn gguf(name: &str) -> Option<Gguf> {
    let bytes = data_bytes(&format!("tokenizers/ggml-vocab-{name}.gguf"))?;
    Some(Gguf::parse(name, bytes).unwrap())
}

fn text(name: &str, ending: &str) -> Option<String> {
    Some(String::from_utf8(data_bytes(&format!("tokenizers/ggml-vocab-{name}.gguf.{ending}"))?).unwrap())
}

/// Encodes every text; decodes it back, where the vocabulary has a token for each byte.
fn check(name: &str) {
    let (Some(gguf), Some(texts), Some(ids)) = (gguf(name), text(name, "inp"), text(name, "out")) else { return };
    let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
    // One more separator, with its line end, follows the last text.
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!((texts.len(), texts[texts.len() - 1]), (ids.len() + 1, ""));
    assert!(ids.len() >= 46, "{name}: only {} texts", ids.len());
    for (text, ids) in texts.iter().zip(ids) {
        let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, SpecialTokens::AsText).unwrap(), ids, "{name}: {text:?}");
        if tokenizer.lost_bytes(text) == 0 {
            let decoded = tokenizer.decode(&ids, ControlTokens::Hide).unwrap();
            assert_eq!(String::from_utf8(decoded).as_deref(), Ok(*text), "{name}");
        }
    }
}

#[test]
fn gpt2() {
    check("gpt-2");
}

#[test]
fn mpt() {
    check("mpt");
}

#[test]
fn qwen2() {
    check("qwen2");
}

#[test]
fn starcoder() {
    check("starcoder");
}

#[test]
fn phi3() {
    check("phi-3");
}

/// Special tokens parsed, prompts with what the file wants at their ends, end tokens (fixtures/tokenizer).
#[test]
fn special_tokens_are_llama_cpps() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tokenizer/special.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let vocabularies = fixture["end_tokens"].as_object().unwrap();
    assert_eq!(vocabularies.len(), 5);
    for (name, end_tokens) in vocabularies {
        let Some(gguf) = gguf(name) else { return };
        let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
        assert_eq!(tokenizer.end_tokens(), ids(end_tokens), "{name}");
        let cases = fixture["cases"].as_array().unwrap().iter().filter(|case| case["vocabulary"] == name.as_str());
        assert_eq!(cases.clone().count(), 12);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode_prompt(text).unwrap(), ids(&case["prompt"]), "{name}: {text:?}");
            let as_text = tokenizer.encode(text, SpecialTokens::AsText).unwrap();
            assert_eq!(as_text, ids(&case["as_text"]), "{name} as text: {text:?}");
        }
    }
}

#[test]
fn other_pre_tokenizers_are_refused_by_name() {
    for (name, pre) in [
        ("falcon", "'falcon'"),
        ("deepseek-llm", "'deepseek-llm'"),
        ("deepseek-coder", "'deepseek-coder'"),
        ("qwen35", "'qwen35'"),
        ("gpt-neox", "(the file has no tokenizer.ggml.pre)"),
    ] {
        let Some(gguf) = gguf(name) else { return };
        let message = Tokenizer::from_gguf(gguf.metadata()).unwrap_err().to_string();
        assert!(message.starts_with(&format!("unknown pre-tokenizer {pre} (supported: gpt-2, ")), "{message}");
    }
}
