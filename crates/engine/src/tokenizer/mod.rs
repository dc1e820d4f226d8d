//! Text to token ids and back, as the model's file defines it.
//!
//! ```text
//! text --splitter--> special tokens, and text between --pretokenizer--> words --bpe--> ids      (vocabularies of kind gpt2)
//!                                                     --sentencepiece----------------> ids      (kind llama)
//! ids --decoder--> text, whole characters at a time
//! ```
//!
//! Ids are those that llama.cpp gives, for text with special tokens and without (except around letters that Unicode has had only since
//! version 15, which its tables do not know). A vocabulary is hostile until checked: [`Tokenizer::new`]
//! refuses what could not be encoded or decoded later, and encoding takes time in proportion to text (times its
//! logarithm), whatever the text is.
//!
//! Decoding gives the bytes that were encoded: no spaces are tidied up around punctuation.

mod bpe;
mod byte_level;
mod decoder;
mod error;
mod pretokenizer;
mod sentencepiece;
mod special;
mod splitter;
#[cfg(test)]
mod tests;
mod tokens;
mod vocabulary;

pub use byte_level::letter;
pub use decoder::Decoder;
pub use error::Error;
pub use tokens::TokenType;
pub use vocabulary::Vocabulary;

use bpe::BytePairs;
use sentencepiece::SentencePiece;
use splitter::{Fragment, Splitter};
use tokens::Tokens;

/// What the names of control tokens mean inside a text that is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They become the tokens: for prompts and templates.
    Parse,
    /// They are text like any other: for what others wrote. User-defined tokens are text, and cut out all the same.
    AsText,
}

/// Whether control tokens show in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlTokens {
    /// By their names.
    Show,
    /// They leave nothing.
    Hide,
}

/// A checked vocabulary.
#[derive(Debug)]
pub struct Tokenizer {
    tokens: Tokens,
    splitter: Splitter,
    encoder: Encoder,
    bos: Option<u32>,
    eos: Option<u32>,
    /// What prompts start with.
    prompt_start: Option<u32>,
    /// Ascending.
    end_tokens: Vec<u32>,
}

#[derive(Debug)]
enum Encoder {
    BytePairs(Box<BytePairs>),
    SentencePiece(Box<SentencePiece>),
}

impl Tokenizer {
    /// The tokenizer of a GGUF file.
    ///
    /// # Errors
    /// Keys are missing or wrong, or the vocabulary is not one that [`Tokenizer::new`] takes.
    pub fn from_gguf(metadata: &moce_gguf::Metadata) -> Result<Tokenizer, Error> {
        Tokenizer::new(&Vocabulary::from_gguf(metadata)?)
    }

    /// Checks a vocabulary and builds its tables.
    ///
    /// # Errors
    /// Kind or pre-tokenizer are unknown; lists disagree in length; tokens are there twice; merges are no pairs of tokens; ids point
    /// outside.
    pub fn new(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, Error> {
        let sentencepiece = match vocabulary.model {
            "gpt2" => false,
            "llama" => true,
            other => return Err(Error::UnknownModel { found: other.into(), supported: "gpt2, llama".into() }),
        };
        let decode = if sentencepiece { sentencepiece::decode } else { bpe::decode };
        let mut tokens = Tokens::new(vocabulary, decode)?;
        // SentencePiece's trainer numbers them so unless told otherwise.
        let default = |id| (sentencepiece && id < tokens.len() as u32).then_some(id);
        let bos = vocabulary.bos.or(default(1));
        let eos = vocabulary.eos.or(default(2));
        let unknown = vocabulary.unknown.or(default(0));
        for (key, id) in [("bos_token_id", bos), ("eos_token_id", eos), ("unknown_token_id", unknown)] {
            check_id(key, id, &tokens)?;
        }
        vocabulary.end.iter().try_for_each(|&id| check_id("an end token's id", Some(id), &tokens))?;
        let prompt_start = match (vocabulary.add_bos.unwrap_or(sentencepiece), bos) {
            (false, _) => None,
            (true, Some(id)) => Some(id),
            (true, None) => return Err(Error::MissingBos),
        };
        let end_tokens = special::end_tokens(vocabulary, eos, &mut tokens);
        let encoder = if sentencepiece {
            Encoder::SentencePiece(Box::new(SentencePiece::new(vocabulary, unknown, &tokens)?))
        } else {
            Encoder::BytePairs(Box::new(BytePairs::new(vocabulary)?))
        };
        let splitter = Splitter::new(vocabulary, &tokens)?;
        Ok(Tokenizer { tokens, splitter, encoder, bos, eos, prompt_start, end_tokens })
    }

    /// The tokens of `text`, none added. Bytes that the vocabulary has no token for are left out ([`Tokenizer::lost_bytes`]).
    ///
    /// # Errors
    /// The merging library fails; no text is known to make it.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        let mut after_special = true;
        for fragment in self.splitter.split(text, special) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => match &self.encoder {
                    Encoder::BytePairs(encoder) => encoder.encode(text, &mut ids)?,
                    Encoder::SentencePiece(encoder) => encoder.encode(text, after_special, &mut ids),
                },
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        Ok(ids)
    }

    /// The tokens of a prompt: special tokens are parsed, and the one that the file wants at the start is added. What a file may want at the
    /// end (`add_eos_token`) is for whole texts: behind it a model would begin another one.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::from_iter(self.prompt_start);
        ids.extend(self.encode(text, SpecialTokens::Parse)?);
        Ok(ids)
    }

    /// How many bytes of `text` have no token, so that encoding would lose them. 0 for most vocabularies and texts.
    pub fn lost_bytes(&self, text: &str) -> usize {
        match &self.encoder {
            Encoder::BytePairs(encoder) => encoder.lost_bytes(text),
            Encoder::SentencePiece(_) => 0, // the unknown token stands for them
        }
    }

    /// The bytes of a whole text; tokens may end in the middle of a character. The space that encoding adds at the start goes.
    ///
    /// # Errors
    /// An id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32], control: ControlTokens) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        for &id in ids {
            let unknown = || Error::UnknownId { found: id, tokens: self.tokens.len() };
            let kind = self.token_type(id).ok_or_else(unknown)?;
            if control == ControlTokens::Show || !matches!(kind, TokenType::Control | TokenType::Unknown) {
                bytes.extend_from_slice(self.piece(id).unwrap_or_default());
            }
        }
        let prefixed = matches!(&self.encoder, Encoder::SentencePiece(encoder) if encoder.space_prefix);
        if prefixed && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        Ok(bytes)
    }

    /// Text from tokens as they are generated, which goes on from what stands before it.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder::new(self)
    }

    /// The bytes of one token, a control token's name; `None` outside of the vocabulary.
    pub fn piece(&self, id: u32) -> Option<&[u8]> {
        self.tokens.bytes(id)
    }

    /// What a token is for; `None` outside of the vocabulary.
    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        self.tokens.token_type(id)
    }

    /// How many tokens there are. Ids are less.
    pub fn vocabulary_size(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens that end a generation, ascending: end of text, of turn, of message.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Whether a token ends a generation.
    pub fn is_end(&self, id: u32) -> bool {
        self.end_tokens.binary_search(&id).is_ok()
    }

    /// The token of the beginning of a text, whether or not prompts start with it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token of the end of a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Memory held, counted from the tables; encoding takes some more for as long as it runs.
    pub fn memory_bytes(&self) -> usize {
        let encoder = match &self.encoder {
            Encoder::BytePairs(encoder) => encoder.memory_bytes(),
            Encoder::SentencePiece(encoder) => encoder.memory_bytes(),
        };
        self.tokens.memory_bytes() + self.splitter.memory_bytes() + encoder
    }
}

fn check_id(key: &'static str, id: Option<u32>, tokens: &Tokens) -> Result<(), Error> {
    match id {
        Some(found) if found as usize >= tokens.len() => Err(Error::SpecialId { key, found, tokens: tokens.len() }),
        _ => Ok(()),
    }
}
