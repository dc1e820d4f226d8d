//! Tokens that are known by their text: which ones end a generation, and which are marks whatever type a file gives them.
//!
//! Files name one or two end tokens, models use more: a base model's end of text, a chat model's end of turn, end of message.
//! Going on past one of them gives the user the model's idea of the next turn. The list is llama.cpp's.

use super::tokens::Tokens;
use super::{TokenType, Vocabulary};
use std::collections::BTreeSet;

/// What a text means in every vocabulary that has it as a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpecialText {
    /// A control token that ends a generation.
    End,
    /// A control token.
    Control,
    /// A mark that users get to see.
    Shown,
}

/// The meaning of a token's text, if it is one of those known.
pub(super) fn meaning(text: &str) -> Option<SpecialText> {
    if !text.starts_with(['<', '[', '_', '▁']) {
        return None; // nearly all of them
    }
    Some(match text {
        "<|eot_id|>"
        | "<|im_end|>"
        | "<|end|>"
        | "<|return|>"
        | "<|call|>"
        | "<|flush|>"
        | "<|calls|>"
        | "<end_of_turn>"
        | "<|endoftext|>"
        | "</s>"
        | "<|eom_id|>"
        | "<EOT>"
        | "_<EOT>"
        | "[EOT]"
        | "[EOS]"
        | "<|end_of_text|>"
        | "<end_of_utterance>"
        | "<eos>"
        | "<turn|>"
        | "<|tool_response>"
        | "<｜end▁of▁sentence｜>"
        | "[e~[" => SpecialText::End,
        // Filling in the middle: padding and the next file end the current text.
        "<|fim_pad|>" | "<fim-pad>" | "<fim_pad>" | "<PAD>" | "[PAD]" | "<|fim_repo|>" | "<|repo_name|>"
        | "<fim-repo>" | "<REPO>" | "<reponame>" | "<|file_sep|>" => SpecialText::End,
        "<|fim_prefix|>"
        | "<fim-prefix>"
        | "<fim_prefix>"
        | "<｜fim▁begin｜>"
        | "<PRE>"
        | "▁<PRE>"
        | "<|code_prefix|>"
        | "<|prefix|>"
        | "<|fim_suffix|>"
        | "<fim-suffix>"
        | "<fim_suffix>"
        | "<｜fim▁hole｜>"
        | "<SUF>"
        | "▁<SUF>"
        | "<|code_suffix|>"
        | "<|suffix|>"
        | "<|fim_middle|>"
        | "<fim-middle>"
        | "<fim_middle>"
        | "<｜fim▁end｜>"
        | "<MID>"
        | "▁<MID>"
        | "<|code_middle|>"
        | "<|middle|>" => SpecialText::Control,
        "<|channel|>" | "<|message|>" | "<|start|>" | "<|constrain|>" => SpecialText::Shown,
        _ => return None,
    })
}

/// The tokens that end a generation, ascending: those of the file, and those known by their text.
pub(super) fn end_tokens(vocabulary: &Vocabulary<'_>, eos: Option<u32>, tokens: &mut Tokens) -> Vec<u32> {
    let mut ends: BTreeSet<u32> = eos.into_iter().chain(vocabulary.end.iter().copied()).collect();
    let text = |id: u32| vocabulary.tokens[id as usize];
    ends.extend(
        (0..).zip(&vocabulary.tokens).filter(|(_, text)| meaning(text) == Some(SpecialText::End)).map(|(id, _)| id),
    );
    let find = |ends: &BTreeSet<u32>, wanted: &[&str]| ends.iter().copied().find(|&id| wanted.contains(&text(id)));

    // Where other tokens end a message, <|end|> only ends one of its parts.
    let calls = find(&ends, &["<|call|>", "<|calls|>"]).is_some();
    if let Some(end) = find(&ends, &["<|end|>"])
        && calls
        && find(&ends, &["<|return|>", "<|flush|>"]).is_some()
    {
        ends.remove(&end);
        tokens.set_type(end, TokenType::UserDefined);
    }
    // In these families </s> is HTML's.
    if let Some(end) = find(&ends, &["</s>"])
        && find(&ends, &["<|tool_response>", "<|plamo:eos|>"]).is_some()
    {
        ends.remove(&end);
        tokens.set_type(end, TokenType::Normal);
    }
    ends.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn ends<'a>(tokens: &[&'a str], eos: Option<u32>) -> (Vec<&'a str>, Tokens) {
        let vocabulary = Vocabulary { tokens: tokens.to_vec(), end: vec![0], ..Vocabulary::default() };
        let mut checked = Tokens::new(&vocabulary, |spelling| spelling.into()).unwrap();
        let ends = end_tokens(&vocabulary, eos, &mut checked);
        (ends.into_iter().map(|id| tokens[id as usize]).collect(), checked)
    }

    #[test]
    fn ends_come_from_the_file_and_from_known_texts() {
        let (ends, tokens) =
            ends(&["a", "b", "<|im_end|>", "<|im_start|>", "c", "</s>", "<fim_pad>", "<fim_prefix>"], Some(4));
        assert_eq!(ends, ["a", "<|im_end|>", "c", "</s>", "<fim_pad>"]);
        // The vocabulary says "normal" for all of them.
        assert_eq!(tokens.token_type(2), Some(TokenType::Control));
        assert_eq!(tokens.token_type(3), Some(TokenType::Normal));
        assert_eq!(tokens.token_type(7), Some(TokenType::Control));
    }

    #[test]
    fn the_end_of_a_part_is_no_end_where_messages_have_another() {
        let (found, tokens) = ends(&["a", "<|end|>", "<|return|>", "<|call|>", "<|channel|>"], None);
        assert_eq!(found, ["a", "<|return|>", "<|call|>"]);
        assert_eq!(tokens.token_type(1), Some(TokenType::UserDefined));
        assert_eq!(tokens.token_type(4), Some(TokenType::UserDefined));
        assert_eq!(ends(&["a", "<|end|>", "<|return|>"], None).0, ["a", "<|end|>", "<|return|>"]);
        let (found, tokens) = ends(&["a", "</s>", "<|tool_response>"], None);
        assert_eq!(found, ["a", "<|tool_response>"]);
        assert_eq!(tokens.token_type(1), Some(TokenType::Normal));
    }

    #[test]
    fn a_type_that_does_not_exist_is_refused() {
        let vocabulary =
            Vocabulary { tokens: vec!["a", "b"], token_types: Cow::Borrowed(&[0, 7]), ..Vocabulary::default() };
        let message = Tokens::new(&vocabulary, |spelling| spelling.into()).unwrap_err().to_string();
        assert_eq!(message, "token_type[1] is 7 (expected 0 to 6)");
    }
}
