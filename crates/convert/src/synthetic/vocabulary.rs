//! A vocabulary that encodes any text byte by byte: one token a byte, an end token, and as many unused ones as the size wants.

use moce_engine::tokenizer;
use moce_gguf::{Array, Strings, Value, Writer};

/// Tokens that there are in any case: 256 bytes and the end of a text.
pub(super) const LEAST: usize = 257;
const END: u32 = 256;

/// GGUF's token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

pub(super) fn set_metadata(writer: &mut Writer, size: usize) -> Result<(), moce_gguf::Error> {
    let mut tokens = Strings::new();
    let mut types = Vec::with_capacity(size);
    for byte in 0..=255 {
        tokens.push(tokenizer::letter(byte).encode_utf8(&mut [0; 4]).as_bytes());
        types.push(NORMAL);
    }
    tokens.push(b"<|endoftext|>");
    types.push(CONTROL);
    for id in LEAST..size {
        tokens.push(format!("<unused{id}>").as_bytes());
        types.push(UNUSED);
    }
    writer.set("tokenizer.ggml.model", "gpt2")?;
    writer.set("tokenizer.ggml.pre", "gpt-2")?;
    writer.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)))?;
    writer.set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)))?;
    writer.set("tokenizer.ggml.merges", Value::Array(Array::String(Strings::new())))?;
    for key in ["bos", "eos", "padding"] {
        writer.set(&format!("tokenizer.ggml.{key}_token_id"), END)?;
    }
    writer.set("tokenizer.ggml.add_bos_token", false)
}
