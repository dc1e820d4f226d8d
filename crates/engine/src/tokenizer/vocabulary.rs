//! A vocabulary as a file describes it: plain data, borrowed from the metadata, not yet believed.

use super::Error;
use moce_gguf::{Metadata, Strings};
use std::borrow::Cow;

/// What `tokenizer.ggml.*` says. Everything is checked by [`Tokenizer::new`](super::Tokenizer::new).
#[derive(Clone, Debug, Default)]
pub struct Vocabulary<'a> {
    /// Kind: `gpt2` (byte pairs) or `llama` (SentencePiece).
    pub model: &'a str,
    /// How text is cut into words before byte pairs are merged.
    pub pre: Option<&'a str>,
    /// The text of each token, as the kind spells it.
    pub tokens: Vec<&'a str>,
    /// SentencePiece: the higher, the earlier merged. Empty for byte pairs.
    pub scores: Cow<'a, [f32]>,
    /// GGUF's token types, one a token; empty: all normal.
    pub token_types: Cow<'a, [i32]>,
    /// Byte pairs: two tokens with a space between them, first merged first.
    pub merges: Vec<&'a str>,
    /// Beginning of a text. SentencePiece: 1 if not given.
    pub bos: Option<u32>,
    /// End of a text. SentencePiece: 2 if not given.
    pub eos: Option<u32>,
    /// What stands for text that has no token. SentencePiece: 0 if not given.
    pub unknown: Option<u32>,
    /// Further tokens that end a generation: end of turn, end of message, and the like.
    pub end: Vec<u32>,
    /// Whether prompts start with `bos`. SentencePiece: yes if not given; else no.
    pub add_bos: Option<bool>,
    /// SentencePiece: whether text starts with a space that was not written; yes if not given.
    pub add_space_prefix: Option<bool>,
    /// Whitespace after a control or user-defined token is dropped. Files do not say this; Phi-3 wants it.
    pub strip_after_special: bool,
}

impl<'a> Vocabulary<'a> {
    /// Reads the keys `tokenizer.ggml.*`.
    ///
    /// # Errors
    /// A key that is needed is missing, one has a wrong type, or a string is not UTF-8.
    pub fn from_gguf(metadata: &'a Metadata) -> Result<Vocabulary<'a>, Error> {
        let model = metadata.string("tokenizer.ggml.model")?;
        let merges = metadata.find::<&Strings>("tokenizer.ggml.merges")?;
        let merges = merges.map_or(Ok(Vec::new()), |merges| utf8("merges", merges))?;
        let scores = metadata.find::<&[f32]>("tokenizer.ggml.scores")?.unwrap_or_default();
        let token_types = metadata.find::<Cow<'_, [i32]>>("tokenizer.ggml.token_type")?.unwrap_or_default();
        let id = |key: &str| metadata.find::<u32>(&format!("tokenizer.ggml.{key}_token_id"));
        let mut end = Vec::new();
        for key in ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"] {
            end.extend(id(key)?);
        }
        let name = metadata.find::<&str>("general.name")?.unwrap_or_default().to_lowercase();
        Ok(Vocabulary {
            model,
            pre: metadata.find("tokenizer.ggml.pre")?,
            tokens: utf8("tokens", metadata.strings("tokenizer.ggml.tokens")?)?,
            scores: Cow::Borrowed(scores),
            token_types,
            merges,
            bos: id("bos")?,
            eos: id("eos")?,
            unknown: id("unknown")?,
            end,
            add_bos: metadata.find("tokenizer.ggml.add_bos_token")?,
            add_space_prefix: metadata.find("tokenizer.ggml.add_space_prefix")?,
            strip_after_special: name.contains("phi-3") || name.contains("phi3"),
        })
    }
}

fn utf8<'a>(list: &'static str, strings: &'a Strings) -> Result<Vec<&'a str>, Error> {
    let string = |(index, bytes)| std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8 { list, index });
    strings.iter().enumerate().map(string).collect()
}
