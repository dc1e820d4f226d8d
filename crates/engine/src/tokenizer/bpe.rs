//! Byte pair encoding over GPT-2's letters: words are cut out of the text, spelled in letters, and merged by the `tokenizers` crate.
//!
//! Its cache of words is off: it would grow with the text, and memory is promised. Its pre-tokenizers are not used; see
//! `pretokenizer` for why.

use super::pretokenizer::PreTokenizer;
use super::tokens::ids_by_spelling;
use super::{Error, Vocabulary, byte_level};
use std::collections::HashSet;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

/// The encoder of `gpt2` vocabularies.
#[derive(Debug)]
pub(super) struct BytePairs {
    pre: PreTokenizer,
    model: BPE,
    /// Bytes whose letter is no token: rare control characters in vocabularies learnt from text.
    missing: [bool; 256],
    memory_bytes: usize,
}

impl BytePairs {
    pub(super) fn new(vocabulary: &Vocabulary<'_>) -> Result<BytePairs, Error> {
        let pre = PreTokenizer::named(vocabulary.pre)?;
        let ids = ids_by_spelling(&vocabulary.tokens)?;
        let longest = ids.keys().map(String::len).max().unwrap_or(0);
        let mut seen = HashSet::with_capacity(vocabulary.merges.len());
        let mut merges = Vec::with_capacity(vocabulary.merges.len());
        for (index, &merge) in vocabulary.merges.iter().enumerate() {
            let error = |problem| Error::Merge { index, merge: merge.into(), problem };
            let (left, right) =
                merge.split_once(' ').ok_or_else(|| error("expected two tokens with a space between"))?;
            if left.is_empty() || right.is_empty() || right.contains(' ') {
                return Err(error("expected two tokens with one space between"));
            }
            if left.len() + right.len() > longest {
                // Checked here because `tokenizers` 0.23 panics.
                return Err(error("its result is no token"));
            }
            if !seen.insert(merge) {
                return Err(error("the same merge stands before"));
            }
            merges.push((left.to_owned(), right.to_owned()));
        }
        drop(seen);
        let missing = std::array::from_fn(|byte| {
            let letter = byte_level::letter(byte as u8); // under 256
            !ids.contains_key(letter.encode_utf8(&mut [0; 4]) as &str)
        });
        let memory_bytes = memory_bytes(vocabulary);
        let model = BPE::builder().vocab_and_merges(ids, merges).cache_capacity(0).build();
        let model = model.map_err(|error| bad_merge(vocabulary).unwrap_or(Error::Library(error)))?;
        Ok(BytePairs { pre, model, missing, memory_bytes })
    }

    /// Appends the tokens of `text`. Bytes without a token are left out.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        let mut spelled = String::new();
        for word in self.pre.words(text) {
            spelled.clear();
            for byte in word.bytes() {
                if self.missing[usize::from(byte)] {
                    // What stands before and after it must not be merged.
                    self.merge(&spelled, ids)?;
                    spelled.clear();
                } else {
                    spelled.push(byte_level::letter(byte));
                }
            }
            self.merge(&spelled, ids)?;
        }
        Ok(())
    }

    /// How many bytes of `text` have no token.
    pub(super) fn lost_bytes(&self, text: &str) -> usize {
        text.bytes().filter(|&byte| self.missing[usize::from(byte)]).count()
    }

    fn merge(&self, spelled: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        let tokens = self.model.tokenize(spelled).map_err(Error::Library)?;
        ids.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }
}

/// The bytes that a normal token's spelling stands for. A spelling that has other characters than letters stands for itself.
pub(super) fn decode(spelling: &str) -> Vec<u8> {
    byte_level::bytes(spelling).unwrap_or_else(|| spelling.into())
}

/// The first merge of unknown tokens. Only looked for when there is one.
fn bad_merge(vocabulary: &Vocabulary<'_>) -> Option<Error> {
    let tokens: HashSet<&str> = vocabulary.tokens.iter().copied().collect();
    vocabulary.merges.iter().enumerate().find_map(|(index, &merge)| {
        let (left, right) = merge.split_once(' ')?;
        let problem = if !tokens.contains(left) {
            "its left side is no token"
        } else if !tokens.contains(right) {
            "its right side is no token"
        } else if !tokens.contains(format!("{left}{right}").as_str()) {
            "its result is no token"
        } else {
            return None;
        };
        Some(Error::Merge { index, merge: merge.into(), problem })
    })
}

/// What the `tokenizers` crate keeps: two maps with the spelling of each token, and one of the merges.
fn memory_bytes(vocabulary: &Vocabulary<'_>) -> usize {
    // 7/8 full at most, a power of two of places, one byte beside each.
    let table = |len: usize, entry: usize| (len * 8 / 7).next_power_of_two() * (entry + 1);
    // The system's allocator gives no less than 32 bytes, in steps of 16, with 8 of its own.
    let spellings: usize = vocabulary.tokens.iter().map(|token| (token.len() + 8).next_multiple_of(16).max(32)).sum();
    2 * (table(vocabulary.tokens.len(), size_of::<(String, u32)>()) + spellings)
        + table(vocabulary.merges.len(), size_of::<((u32, u32), (u32, u32))>())
}
