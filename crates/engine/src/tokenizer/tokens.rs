//! The tokens once they are checked: type and text of each, in two allocations.

use super::special::{self, SpecialText};
use super::{Error, Vocabulary};
use ahash::AHashMap;

/// Ids are `i32` elsewhere.
const MAX_TOKENS: usize = i32::MAX as usize;
/// Places in the text are `u32`.
const MAX_BYTES: usize = u32::MAX as usize;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenType {
    /// A piece of text.
    Normal,
    /// What stands for text that has no token.
    Unknown,
    /// A mark that no text contains: beginning of text, end of turn.
    Control,
    /// Text that is always one token, whatever stands around it.
    UserDefined,
    /// Never used by the model.
    Unused,
    /// A single byte, spelled `<0x41>`.
    Byte,
}

/// Types and texts by id. Texts are the bytes that a token stands for, not its spelling in the file.
#[derive(Debug)]
pub(super) struct Tokens {
    types: Vec<TokenType>,
    text: Vec<u8>,
    /// Where each token's text ends.
    ends: Vec<u32>,
}

impl Tokens {
    /// Checks tokens and types; `decode` gives the bytes that a normal token's spelling stands for.
    pub(super) fn new(vocabulary: &Vocabulary<'_>, decode: impl Fn(&str) -> Vec<u8>) -> Result<Tokens, Error> {
        let spellings = &vocabulary.tokens;
        let bytes = spellings.iter().map(|token| token.len()).sum();
        if spellings.is_empty() || spellings.len() > MAX_TOKENS || bytes > MAX_BYTES {
            return Err(Error::Size { tokens: spellings.len(), bytes, max_tokens: MAX_TOKENS, max_bytes: MAX_BYTES });
        }
        if !vocabulary.token_types.is_empty() {
            check_len("token_type", spellings.len(), vocabulary.token_types.len())?;
        }
        let mut tokens = Tokens {
            types: Vec::with_capacity(spellings.len()),
            text: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(spellings.len()),
        };
        for (id, &spelling) in (0..).zip(spellings) {
            let kind = token_type(id, spelling, vocabulary.token_types.get(id as usize).copied())?;
            match kind {
                TokenType::Byte => tokens
                    .text
                    .push(byte_of(spelling).ok_or_else(|| Error::ByteToken { token: id, text: spelling.into() })?),
                TokenType::Normal | TokenType::Unused => tokens.text.extend(decode(spelling)),
                TokenType::Control | TokenType::UserDefined | TokenType::Unknown => {
                    tokens.text.extend(spelling.bytes())
                }
            }
            tokens.types.push(kind);
            tokens.ends.push(u32::try_from(tokens.text.len()).expect("no text is longer than its spelling"));
        }
        tokens.text.shrink_to_fit();
        Ok(tokens)
    }

    pub(super) fn len(&self) -> usize {
        self.types.len()
    }

    pub(super) fn token_type(&self, id: u32) -> Option<TokenType> {
        self.types.get(id as usize).copied()
    }

    pub(super) fn set_type(&mut self, id: u32, kind: TokenType) {
        self.types[id as usize] = kind;
    }

    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] as usize };
        Some(&self.text[start..end])
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.types.capacity() * size_of::<TokenType>() + self.text.capacity() + self.ends.capacity() * size_of::<u32>()
    }
}

/// The ids of all spellings. Empty ones have none: they can't be written, and some files pad their vocabulary with them.
///
/// # Errors
/// Two tokens are the same.
pub(super) fn ids_by_spelling(spellings: &[&str]) -> Result<AHashMap<String, u32>, Error> {
    let mut ids = AHashMap::with_capacity(spellings.len());
    for (id, &spelling) in (0..).zip(spellings).filter(|(_, spelling)| !spelling.is_empty()) {
        if let Some(first) = ids.insert(spelling.to_owned(), id) {
            return Err(Error::DuplicateToken { first, second: id, text: spelling.into() });
        }
    }
    Ok(ids)
}

/// Fails unless a list beside the tokens is as long as they are.
pub(super) fn check_len(list: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { list, expected, found }) }
}

/// The byte that `<0x41>` spells.
fn byte_of(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// GGUF's number, overruled for the spellings that are control tokens in every model that has them: converters often
/// leave them normal, and then a model never ends its turn.
fn token_type(id: u32, spelling: &str, number: Option<i32>) -> Result<TokenType, Error> {
    let given = match number {
        None | Some(1) => TokenType::Normal,
        Some(2) => TokenType::Unknown,
        Some(3) => TokenType::Control,
        Some(4) => TokenType::UserDefined,
        Some(0 | 5) => TokenType::Unused, // 0: undefined
        Some(6) => TokenType::Byte,
        Some(found) => return Err(Error::TokenType { token: id, found }),
    };
    Ok(match special::meaning(spelling) {
        Some(SpecialText::End | SpecialText::Control) => TokenType::Control,
        Some(SpecialText::Shown) => TokenType::UserDefined,
        None => given,
    })
}
