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
