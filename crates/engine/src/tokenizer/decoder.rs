//! Text from tokens as they come: characters whole, control tokens left out.

use super::{TokenType, Tokenizer};

/// Turns tokens into text one at a time. A token may end in the middle of a character; its bytes are held back until the rest
/// comes. The text of all calls together is what `String::from_utf8_lossy` makes of all bytes together.
#[derive(Clone, Debug)]
pub struct Decoder<'t> {
    tokenizer: &'t Tokenizer,
    /// The beginning of a character: at most 3 bytes between calls.
    held: Vec<u8>,
}

impl<'t> Decoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Decoder<'t> {
        Decoder { tokenizer, held: Vec::new() }
    }

    /// Appends what `id` adds to the text: nothing for control tokens and for ids outside of the vocabulary.
    pub fn push(&mut self, id: u32, text: &mut String) {
        if matches!(self.tokenizer.token_type(id), None | Some(TokenType::Control | TokenType::Unknown)) {
            return;
        }
        self.held.extend_from_slice(self.tokenizer.piece(id).unwrap_or_default());
        let mut done = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() || (done + invalid.len() == self.held.len() && may_go_on(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.held.drain(..done);
    }

    /// Ends the text: a character that was not finished becomes U+FFFD.
    pub fn finish(self, text: &mut String) {
        if !self.held.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Whether more bytes can make a character of these.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use crate::tokenizer::{Tokenizer, Vocabulary};
    use proptest::prelude::*;
    use std::borrow::Cow;

    /// Token `b` is byte `b`; 256 is a control token, 257 a word.
    fn bytes() -> Tokenizer {
        let mut spellings: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
        spellings.extend(["<|im_end|>".into(), "né".into()]);
        let mut types = vec![6; 256];
        types.extend([3, 4]);
        let vocabulary = Vocabulary {
            model: "gpt2",
            pre: Some("gpt-2"),
            tokens: spellings.iter().map(String::as_str).collect(),
            token_types: Cow::Owned(types),
            ..Vocabulary::default()
        };
        Tokenizer::new(&vocabulary).unwrap()
    }

    /// The text after each token, and at the end.
    fn decode(ids: &[u32]) -> (Vec<String>, String) {
        let tokenizer = bytes();
        let mut decoder = tokenizer.decoder();
        let mut text = String::new();
        let steps = ids.iter().map(|&id| {
            decoder.push(id, &mut text);
            text.clone()
        });
        let steps = steps.collect();
        decoder.finish(&mut text);
        (steps, text)
    }

    #[test]
    fn half_a_character_is_held_back() {
        let (steps, text) = decode(&[0x61, 0xF0, 0x9F, 0x98, 0x80, 257]);
        assert_eq!(steps, ["a", "a", "a", "a", "a😀", "a😀né"]);
        assert_eq!(text, "a😀né");
    }

    #[test]
    fn a_character_that_never_ends_becomes_one_replacement() {
        assert_eq!(decode(&[0x61, 0xF0, 0x9F, 0x98]).1, "a\u{fffd}");
        assert_eq!(decode(&[0xE2, 0x82, 0x62]).0, ["", "", "\u{fffd}b"]);
        assert_eq!(decode(&[0xFF, 0x62]).0, ["\u{fffd}", "\u{fffd}b"]);
    }

    #[test]
    fn control_tokens_and_unknown_ids_leave_nothing() {
        assert_eq!(decode(&[0x61, 256, 258, u32::MAX, 0x62]).1, "ab");
        // Not even in the middle of a character.
        assert_eq!(decode(&[0xC3, 256, 0xA9]).0, ["", "", "é"]);
    }

    proptest! {
        #[test]
        fn the_text_is_what_all_bytes_together_make(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in ".{0,9}") {
            let all = [text.as_bytes(), &bytes, text.as_bytes()].concat();
            let (steps, decoded) = decode(&all.iter().map(|&byte| byte.into()).collect::<Vec<_>>());
            prop_assert_eq!(&decoded, &String::from_utf8_lossy(&all));
            prop_assert!(steps.iter().all(|step| decoded.starts_with(step)));
        }
    }
}
