//! SentencePiece's merging: of all neighbours that together are a token, the pair with the highest score is joined first, of
//! equal scores the leftmost. What is no token at the end is spelled in byte tokens.
//!
//! Not the `tokenizers` crate's byte pairs: there each pair of neighbours has a rank of its own, so two pairs that make the same
//! token, or tokens of equal score, cannot be tied and settled by their place.

use super::tokens::{Tokens, check_len, ids_by_spelling};
use super::{Error, TokenType, Vocabulary};
use ahash::AHashMap;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// What stands for a space inside of tokens: U+2581.
const SPACE: &str = "▁";

/// The encoder of `llama` vocabularies.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// Tokens that text can become: no control, unknown or byte tokens.
    ids: AHashMap<String, u32>,
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: [u32; 256],
    /// No token is longer.
    longest: usize,
    /// No token has a space after anything but spaces, so that no merge crosses the beginning of a word.
    words_apart: bool,
    pub(super) space_prefix: bool,
}

impl SentencePiece {
    pub(super) fn new(
        vocabulary: &Vocabulary<'_>,
        unknown: Option<u32>,
        tokens: &Tokens,
    ) -> Result<SentencePiece, Error> {
        check_len("scores", vocabulary.tokens.len(), vocabulary.scores.len())?;
        if let Some((token, &found)) = (0..).zip(&*vocabulary.scores).find(|(_, score)| score.is_nan()) {
            return Err(Error::Score { token, found });
        }
        let mut ids = ids_by_spelling(&vocabulary.tokens)?;
        let mut bytes = [0; 256];
        for byte in 0..=255u8 {
            let spelled = ids.get(&format!("<0x{byte:02X}>"));
            let character =
                byte.is_ascii().then(|| ids.get(char::from(byte).encode_utf8(&mut [0; 4]) as &str)).flatten();
            let id = spelled.or(character).copied().or(unknown);
            bytes[usize::from(byte)] = id.ok_or(Error::MissingByte { byte })?;
        }
        ids.retain(|_, &mut id| {
            matches!(tokens.token_type(id), Some(TokenType::Normal | TokenType::UserDefined | TokenType::Unused))
        });
        let longest = ids.keys().map(String::len).max().unwrap_or(0);
        let words_apart = ids.keys().all(|key| word_end(key) == key.len());
        let space_prefix = vocabulary.add_space_prefix.unwrap_or(true);
        Ok(SentencePiece { ids, scores: vocabulary.scores.to_vec(), bytes, longest, words_apart, space_prefix })
    }

    /// Appends the tokens of `text`. `after_special`: it stands at the start or after a special token.
    pub(super) fn encode(&self, text: &str, after_special: bool, ids: &mut Vec<u32>) {
        let prefix = if self.space_prefix && after_special { SPACE } else { "" };
        let spelled = format!("{prefix}{}", text.replace(' ', SPACE));
        let mut rest = spelled.as_str();
        while !rest.is_empty() {
            let end = if self.words_apart { word_end(rest) } else { rest.len() };
            let (word, after) = rest.split_at(end);
            self.encode_word(word, ids);
            rest = after;
        }
    }

    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let mut merging = Merging::new(self, word);
        merging.run();
        for piece in merging.pieces() {
            match self.ids.get(piece) {
                Some(&id) => ids.push(id),
                None => ids.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let table = self.ids.capacity() * 8 / 7 * (size_of::<(String, u32)>() + 1);
        let spellings: usize = self.ids.keys().map(|key| (key.len() + 8).next_multiple_of(16).max(32)).sum();
        table + spellings + self.scores.capacity() * size_of::<f32>()
    }
}

/// The bytes that a normal token's spelling stands for.
pub(super) fn decode(spelling: &str) -> Vec<u8> {
    spelling.replace(SPACE, " ").into()
}

/// Bytes of the first word with the spaces before it.
fn word_end(spelled: &str) -> usize {
    let spaces = spelled.len() - spelled.trim_start_matches(SPACE).len();
    spelled[spaces..].find(SPACE).map_or(spelled.len(), |len| spaces + len)
}

/// One word, or text, on its way from characters to tokens.
struct Merging<'m> {
    model: &'m SentencePiece,
    text: &'m str,
    pieces: Vec<Piece>,
    queue: BinaryHeap<Candidate>,
}

/// A part of the text. Joining moves the right piece's bytes to the left one and leaves it empty.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that could be joined; out of date if their length has changed since.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    score: Score,
    left: Reverse<usize>,
    right: usize,
    len: usize,
}

/// Never NaN; -0 equals 0.
#[derive(PartialEq)]
struct Score(f32);

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Score) -> Ordering {
        self.0.partial_cmp(&other.0).expect("scores that are not numbers were refused")
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Score) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<'m> Merging<'m> {
    fn new(model: &'m SentencePiece, text: &'m str) -> Merging<'m> {
        let mut pieces: Vec<Piece> = Vec::with_capacity(text.len());
        for (start, character) in text.char_indices() {
            let index = pieces.len();
            let len = character.len_utf8();
            let next = (start + len < text.len()).then_some(index + 1);
            pieces.push(Piece { start, len, previous: index.checked_sub(1), next });
        }
        let mut merging = Merging { model, text, pieces, queue: BinaryHeap::new() };
        for left in 0..merging.pieces.len() {
            merging.consider(Some(left), merging.pieces[left].next);
        }
        merging
    }

    fn run(&mut self) {
        while let Some(Candidate { left: Reverse(left), right, len, .. }) = self.queue.pop() {
            let (first, second) = (self.pieces[left], self.pieces[right]);
            if first.len == 0 || second.len == 0 || first.len + second.len != len {
                continue;
            }
            self.pieces[left].len = len;
            self.pieces[left].next = second.next;
            self.pieces[right].len = 0;
            if let Some(next) = second.next {
                self.pieces[next].previous = Some(left);
            }
            self.consider(first.previous, Some(left));
            self.consider(Some(left), second.next);
        }
    }

    /// Queues two neighbours if together they are a token.
    fn consider(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let Piece { start, len, .. } = self.pieces[left];
        let len = len + self.pieces[right].len;
        if len > self.model.longest {
            return;
        }
        if let Some(&id) = self.model.ids.get(&self.text[start..start + len]) {
            let score = Score(self.model.scores[id as usize]);
            self.queue.push(Candidate { score, left: Reverse(left), right, len });
        }
    }

    fn pieces(&self) -> impl Iterator<Item = &'m str> {
        let left = self.pieces.iter().filter(|piece| piece.len > 0);
        left.map(|piece| &self.text[piece.start..piece.start + piece.len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::borrow::Cow;

    fn model(tokens: &[(&str, f32)], unknown: Option<u32>) -> Result<(SentencePiece, Tokens), Error> {
        let vocabulary = Vocabulary {
            tokens: tokens.iter().map(|(text, _)| *text).collect(),
            scores: Cow::Owned(tokens.iter().map(|(_, score)| *score).collect()),
            add_space_prefix: Some(false),
            ..Vocabulary::default()
        };
        let checked = Tokens::new(&vocabulary, decode)?;
        Ok((SentencePiece::new(&vocabulary, unknown, &checked)?, checked))
    }

    fn encode(model: &SentencePiece, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        model.encode(text, true, &mut ids);
        ids
    }

    #[test]
    fn the_highest_score_goes_first_then_the_leftmost() {
        let tokens = [("?", 0.0), ("a", 0.0), ("b", 0.0), ("ab", -2.0), ("ba", -1.0), ("aa", -3.0), ("aaa", -3.0)];
        let (model, _) = model(&tokens, Some(0)).unwrap();
        assert_eq!(encode(&model, "aba"), [1, 4]);
        assert_eq!(encode(&model, "aaaaa"), [6, 5]); // aa at 0, then of equal scores the leftmost: aaa at 0, aa at 3
        assert_eq!(encode(&model, "cab"), [0, 3]);
    }

    #[test]
    fn text_without_token_is_spelled_in_bytes() {
        let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        let tokens: Vec<(&str, f32)> = bytes.iter().map(|byte| (byte.as_str(), 0.0)).collect();
        let (full, _) = model(&tokens, None).unwrap();
        assert_eq!(encode(&full, "é a"), [0xC3, 0xA9, 0xE2, 0x96, 0x81, 0x61]);
        let error = model(&tokens[..255], None).unwrap_err();
        assert_eq!(error.to_string(), "no token for byte 0xFF and no unknown token");
        assert_eq!(encode(&model(&tokens[..0xC3], Some(7)).unwrap().0, "é"), [7, 0xA9]);
    }

    #[test]
    fn scores_must_be_there_and_be_numbers() {
        let error = model(&[("a", 0.0), ("b", f32::NAN)], Some(0)).unwrap_err();
        assert_eq!(error.to_string(), "scores[1] is NaN (expected a number)");
        let vocabulary = Vocabulary { tokens: vec!["a"], ..Vocabulary::default() };
        let tokens = Tokens::new(&vocabulary, decode).unwrap();
        let error = SentencePiece::new(&vocabulary, Some(0), &tokens).unwrap_err();
        assert_eq!(error.to_string(), "scores has 0 entries (expected 1, one a token)");
    }

    /// What the module's head says, the slow way: look at all neighbours each time.
    fn by_definition(model: &SentencePiece, text: &str) -> Vec<u32> {
        let spelled = text.replace(' ', SPACE);
        let mut pieces: Vec<String> = spelled.chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for left in 1..pieces.len() {
                let joined = [pieces[left - 1].as_str(), &pieces[left]].concat();
                if let Some(&id) = model.ids.get(&joined)
                    && best.is_none_or(|(score, _)| model.scores[id as usize] > score)
                {
                    best = Some((model.scores[id as usize], left));
                }
            }
            let Some((_, left)) = best else { break };
            let right = pieces.remove(left);
            pieces[left - 1].push_str(&right);
        }
        let ids = pieces.iter().flat_map(|piece| match model.ids.get(piece) {
            Some(&id) => vec![id],
            None => piece.bytes().map(|byte| model.bytes[usize::from(byte)]).collect(),
        });
        ids.collect()
    }

    proptest! {
        #[test]
        fn merging_is_as_defined(
            words in proptest::collection::hash_set("[ab▁é]{1,4}", 1..30),
            scores in proptest::collection::vec(-3i8..3, 30),
            text in "[ab é]{0,30}",
        ) {
            let mut tokens = vec![("<unk>", 0.0)];
            tokens.extend(words.iter().map(String::as_str).zip(scores.iter().map(|&score| score.into())));
            let (model, _) = model(&tokens, Some(0)).unwrap();
            prop_assert_eq!(encode(&model, &text), by_definition(&model, &text));
        }
    }
}
