//! Cutting special tokens out of a text before the rest is tokenized.
//!
//! Longer tokens go first, wherever they stand, then shorter ones in what is left; that is llama.cpp's order, and it differs from
//! "leftmost first" where two tokens overlap. One pass a length keeps the work at (lengths x text), also for a vocabulary
//! of thousands of special tokens.

use super::tokens::Tokens;
use super::{Error, SpecialTokens, TokenType, Vocabulary};
use aho_corasick::{AhoCorasick, AhoCorasickKind};
use std::collections::BTreeMap;

/// Far above any real vocabulary (the largest has some 60 KB); searching takes some 50 bytes of memory for each of them.
const MAX_BYTES: usize = 4 << 20;

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    /// Text without special tokens; not empty.
    Text(&'t str),
    /// A special token.
    Token(u32),
}

/// Finds special tokens in texts.
#[derive(Debug)]
pub(super) struct Splitter {
    /// Control, user-defined and unknown tokens.
    all: Vec<OneLength>,
    /// User-defined tokens alone: they are text, and always cut out.
    user_defined: Vec<OneLength>,
    /// Whitespace after these is dropped; ascending.
    stripping: Vec<u32>,
}

/// Tokens of equal length.
#[derive(Debug)]
struct OneLength {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Splitter {
    pub(super) fn new(vocabulary: &Vocabulary<'_>, tokens: &Tokens) -> Result<Splitter, Error> {
        let special = |wanted: &[TokenType]| {
            let ids = (0..).zip(&vocabulary.tokens).filter(|&(id, text)| {
                !text.is_empty() && tokens.token_type(id).is_some_and(|kind| wanted.contains(&kind))
            });
            ids.map(|(id, &text)| (id, text)).collect::<Vec<_>>()
        };
        let all = special(&[TokenType::Control, TokenType::UserDefined, TokenType::Unknown]);
        let bytes = all.iter().map(|(_, text)| text.len()).sum();
        if bytes > MAX_BYTES {
            return Err(Error::SpecialSize { found: bytes, expected: MAX_BYTES });
        }
        // Phi-3's own exceptions.
        let stripping = all.iter().filter(|(_, text)| !matches!(*text, "<unk>" | "<s>" | "<|endoftext|>"));
        let stripping = stripping.filter(|_| vocabulary.strip_after_special).map(|&(id, _)| id).collect();
        Ok(Splitter { all: by_length(&all)?, user_defined: by_length(&special(&[TokenType::UserDefined]))?, stripping })
    }

    /// The parts of `text` in order.
    pub(super) fn split<'t>(&self, text: &'t str, special: SpecialTokens) -> Vec<Fragment<'t>> {
        let lengths = match special {
            SpecialTokens::Parse => &self.all,
            SpecialTokens::AsText => &self.user_defined,
        };
        let mut fragments = Vec::new();
        push_text(&mut fragments, text);
        for length in lengths {
            let mut finer = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                match fragment {
                    Fragment::Text(text) => self.split_one(length, text, &mut finer),
                    Fragment::Token(_) => finer.push(fragment),
                }
            }
            fragments = finer;
        }
        fragments
    }

    fn split_one<'t>(&self, length: &OneLength, mut text: &'t str, fragments: &mut Vec<Fragment<'t>>) {
        while let Some(found) = length.automaton.find(text) {
            let id = length.ids[found.pattern().as_usize()];
            push_text(fragments, &text[..found.start()]);
            fragments.push(Fragment::Token(id));
            text = &text[found.end()..];
            if self.stripping.binary_search(&id).is_ok() {
                text = text.trim_start_matches([' ', '\t', '\n', '\x0B', '\x0C', '\r']);
            }
        }
        push_text(fragments, text);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let lengths = self.all.iter().chain(&self.user_defined);
        lengths.map(|length| length.automaton.memory_usage() + length.ids.capacity() * size_of::<u32>()).sum::<usize>()
            + self.stripping.capacity() * size_of::<u32>()
    }
}

fn push_text<'t>(fragments: &mut Vec<Fragment<'t>>, text: &'t str) {
    if !text.is_empty() {
        fragments.push(Fragment::Text(text));
    }
}

/// One automaton a length, longest first.
fn by_length(tokens: &[(u32, &str)]) -> Result<Vec<OneLength>, Error> {
    let mut lengths: BTreeMap<usize, Vec<(u32, &str)>> = BTreeMap::new();
    for &(id, text) in tokens {
        lengths.entry(text.len()).or_default().push((id, text));
    }
    let build = |tokens: &Vec<(u32, &str)>| {
        let texts = tokens.iter().map(|(_, text)| text);
        // The default may be a full automaton: fast, but kilobytes a token.
        let automaton = AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(texts);
        let automaton = automaton.map_err(|error| Error::Library(error.into()))?;
        Ok(OneLength { automaton, ids: tokens.iter().map(|&(id, _)| id).collect() })
    };
    lengths.values().rev().map(build).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;

    fn split<'t>(tokens: &[(&str, i32)], strip: bool, text: &'t str, special: SpecialTokens) -> Vec<Fragment<'t>> {
        let vocabulary = Vocabulary {
            tokens: tokens.iter().map(|(text, _)| *text).collect(),
            token_types: Cow::Owned(tokens.iter().map(|(_, kind)| *kind).collect()),
            strip_after_special: strip,
            ..Vocabulary::default()
        };
        let tokens = Tokens::new(&vocabulary, |spelling| spelling.into()).unwrap();
        Splitter::new(&vocabulary, &tokens).unwrap().split(text, special)
    }

    use Fragment::{Text, Token};
    use SpecialTokens::{AsText, Parse};

    #[test]
    fn control_tokens_are_text_unless_parsed() {
        let tokens = [("<a>", CONTROL), ("x", 1), ("<b>", USER_DEFINED), ("", CONTROL)];
        assert_eq!(split(&tokens, false, "x<a>y<b>", Parse), [Text("x"), Token(0), Text("y"), Token(2)]);
        assert_eq!(split(&tokens, false, "x<a>y<b>", AsText), [Text("x<a>y"), Token(2)]);
        assert_eq!(split(&tokens, false, "<b><b>", AsText), [Token(2), Token(2)]);
        assert_eq!(split(&tokens, false, "", Parse), []);
    }

    #[test]
    fn longer_tokens_go_first_even_if_they_start_later() {
        let tokens = [("ab", USER_DEFINED), ("bcd", USER_DEFINED), ("e", USER_DEFINED)];
        assert_eq!(split(&tokens, false, "abcde", Parse), [Text("a"), Token(1), Token(2)]);
        // Of equal length, the first in the text.
        let tokens = [("bc", USER_DEFINED), ("ab", USER_DEFINED)];
        assert_eq!(split(&tokens, false, "abcbc", Parse), [Token(1), Text("c"), Token(0)]);
    }

    #[test]
    fn whitespace_goes_after_tokens_that_strip() {
        let tokens = [("<s>", CONTROL), ("<|end|>", CONTROL)];
        let text = "<s> a<|end|> \n\u{a0}b<|end|> ";
        assert_eq!(split(&tokens, true, text, Parse), [Token(0), Text(" a"), Token(1), Text("\u{a0}b"), Token(1)]);
        assert_eq!(split(&tokens, false, text, Parse)[3], Text(" \n\u{a0}b"));
    }

    #[test]
    fn more_text_than_any_vocabulary_has_is_refused() {
        let long = "x".repeat(MAX_BYTES + 1);
        let vocabulary =
            Vocabulary { tokens: vec![&long], token_types: Cow::Borrowed(&[CONTROL]), ..Vocabulary::default() };
        let tokens = Tokens::new(&vocabulary, |spelling| spelling.into()).unwrap();
        let message = Splitter::new(&vocabulary, &tokens).unwrap_err().to_string();
        assert_eq!(message, "control and user-defined tokens of 4194305 bytes together (expected at most 4194304)");
    }
}
