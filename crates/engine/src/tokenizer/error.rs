//! What can be wrong with a vocabulary, and with what is given to encode or decode.

/// An error of the tokenizer. Keys are those of the file's metadata, without `tokenizer.ggml.`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A metadata key is missing or has the wrong type.
    #[error(transparent)]
    Metadata(#[from] moce_gguf::Error),
    /// The kind of vocabulary is not one of those supported.
    #[error("unknown tokenizer model '{found}' (supported: {supported})")]
    UnknownModel {
        /// The file's value.
        found: String,
        /// All that could be there.
        supported: String,
    },
    /// The pre-tokenizer is not one of those supported, or there is none where one is needed.
    #[error("unknown pre-tokenizer {found} (supported: {supported})")]
    UnknownPreTokenizer {
        /// The file's value in quotes, or that there is none.
        found: String,
        /// All that could be there.
        supported: String,
    },
    /// A vocabulary without tokens, or with more than ids or memory allow.
    #[error(
        "vocabulary of {tokens} tokens with {bytes} bytes (expected 1 to {max_tokens} tokens, at most {max_bytes} bytes)"
    )]
    Size {
        /// Tokens found.
        tokens: usize,
        /// Bytes of all of them.
        bytes: usize,
        /// Most tokens.
        max_tokens: usize,
        /// Most bytes.
        max_bytes: usize,
    },
    /// Control and user-defined tokens with more text than any real vocabulary has.
    #[error("control and user-defined tokens of {found} bytes together (expected at most {expected})")]
    SpecialSize {
        /// Their bytes.
        found: usize,
        /// Most bytes.
        expected: usize,
    },
    /// A string that has to be UTF-8 is not.
    #[error("{list}[{index}] is not UTF-8")]
    NotUtf8 {
        /// The key.
        list: &'static str,
        /// Its place.
        index: usize,
    },
    /// A list beside the tokens has another length.
    #[error("{list} has {found} entries (expected {expected}, one a token)")]
    Length {
        /// The key.
        list: &'static str,
        /// How many tokens.
        expected: usize,
        /// How many entries.
        found: usize,
    },
    /// The same token twice.
    #[error("tokens {first} and {second} are the same: {text:?}")]
    DuplicateToken {
        /// The earlier id.
        first: u32,
        /// The later id.
        second: u32,
        /// Their text.
        text: String,
    },
    /// A type that does not exist.
    #[error("token_type[{token}] is {found} (expected 0 to 6)")]
    TokenType {
        /// The token.
        token: u32,
        /// Its type.
        found: i32,
    },
    /// A byte token that names no byte.
    #[error("token {token} is a byte token, but {text:?} names no byte (expected \"<0x00>\" to \"<0xFF>\")")]
    ByteToken {
        /// The token.
        token: u32,
        /// Its text.
        text: String,
    },
    /// A score that cannot be compared.
    #[error("scores[{token}] is {found} (expected a number)")]
    Score {
        /// The token.
        token: u32,
        /// Its score.
        found: f32,
    },
    /// A vocabulary that cannot spell every text, and has no unknown token either.
    #[error("no token for byte 0x{byte:02X} and no unknown token")]
    MissingByte {
        /// The first such byte.
        byte: u8,
    },
    /// A merge that is no pair of tokens, or whose result is none.
    #[error("merges[{index}] is {merge:?}: {problem}")]
    Merge {
        /// Its place.
        index: usize,
        /// The merge.
        merge: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An id of a special token that points outside of the vocabulary.
    #[error("{key} is {found} (expected less than {tokens}, the number of tokens)")]
    SpecialId {
        /// The key.
        key: &'static str,
        /// Its value.
        found: u32,
        /// How many tokens.
        tokens: usize,
    },
    /// A token shall be added at the start, but the file does not say which.
    #[error("add_bos_token is set, but there is no bos_token_id")]
    MissingBos,
    /// An id to decode that is not in the vocabulary.
    #[error("token id {found} (expected less than {tokens}, the number of tokens)")]
    UnknownId {
        /// The id.
        found: u32,
        /// How many tokens.
        tokens: usize,
    },
    /// The library that merges or searches failed.
    #[error("tokenizer: {0}")]
    Library(Box<dyn std::error::Error + Send + Sync>),
}
