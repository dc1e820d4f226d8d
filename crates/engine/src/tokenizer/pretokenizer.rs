//! Cutting text into words, inside of which byte pairs are merged.
//!
//! The rules are usually written as regular expressions. They are scanners here, because a backtracking engine gives up on long
//! runs (a megabyte of spaces) and an automaton has no look-ahead; each scanner looks at a character at most three times.
//! Character classes are general categories of Unicode 16: letter `\p{L}`, number `\p{N}`; whitespace is `White_Space`.

use super::Error;
use unicode_general_category::{GeneralCategory, get_general_category};

/// How text is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `\p{N}` first, each a word of its own, then GPT-2's rule between them.
    Smollm,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Qwen2,
}

/// The names in files and the rule that llama.cpp 0.3.36 (llama-cpp-python) has for each of them. Held to its outputs in the tests:
/// gpt-2, mpt, smollm, starcoder, qwen2; the others stand beside these in its table.
const NAMES: &[(PreTokenizer, &[&str])] = &[
    (
        PreTokenizer::Gpt2,
        &[
            "gpt-2",
            "mpt",
            "olmo",
            "phi-2",
            "exaone4",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "mellum",
            "a.x-4.0",
        ],
    ),
    (
        PreTokenizer::Smollm,
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
    ),
    (
        PreTokenizer::Qwen2,
        &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "solar-open", "megrez", "kormo", "f2llmv2"],
    ),
];

impl PreTokenizer {
    /// The rule of that name in `tokenizer.ggml.pre`. A file without one is refused: its words would be guessed.
    pub(super) fn named(name: Option<&str>) -> Result<PreTokenizer, Error> {
        let known = NAMES.iter().find(|(_, names)| name.is_some_and(|name| names.contains(&name)));
        known.map(|&(rule, _)| rule).ok_or_else(|| Error::UnknownPreTokenizer {
            found: name.map_or("(the file has no tokenizer.ggml.pre)".into(), |name| format!("'{name}'")),
            supported: NAMES.iter().flat_map(|(_, names)| *names).copied().collect::<Vec<_>>().join(", "),
        })
    }

    /// The words of `text`; together they are the text.
    pub(super) fn words(self, text: &str) -> Words<'_> {
        Words { rule: self, fragment: "", rest: text }
    }
}

/// Iterator over words.
#[derive(Clone, Debug)]
pub(super) struct Words<'t> {
    rule: PreTokenizer,
    /// Text without numbers where those are words of their own, else all of it. No rule looks past its end.
    fragment: &'t str,
    rest: &'t str,
}

impl<'t> Iterator for Words<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        if self.fragment.is_empty() {
            let first = self.rest.chars().next()?;
            let end = match self.rule {
                PreTokenizer::Smollm if Class::of(first) == Class::Number => first.len_utf8(),
                PreTokenizer::Smollm => run(self.rest, |c| Class::of(c) != Class::Number),
                PreTokenizer::Gpt2 | PreTokenizer::Qwen2 => self.rest.len(),
            };
            (self.fragment, self.rest) = self.rest.split_at(end);
        }
        let end = match self.rule {
            PreTokenizer::Gpt2 | PreTokenizer::Smollm => gpt2_word(self.fragment)?,
            PreTokenizer::Qwen2 => qwen2_word(self.fragment)?,
        };
        let (word, fragment) = self.fragment.split_at(end);
        self.fragment = fragment;
        Some(word)
    }
}

/// Bytes of the first word by GPT-2's rule; `None` at the end.
fn gpt2_word(text: &str) -> Option<usize> {
    let mut characters = text.chars();
    let first = characters.next()?;
    if let Some(len) = contraction(text, false) {
        return Some(len);
    }
    let space = usize::from(first == ' ');
    let main = if space == 1 { characters.next() } else { Some(first) };
    Some(match main.map(Class::of) {
        None | Some(Class::Whitespace) => whitespace(text),
        Some(class) => space + run(&text[space..], |c| Class::of(c) == class),
    })
}

/// Bytes of the first word by Qwen2's rule; `None` at the end.
fn qwen2_word(text: &str) -> Option<usize> {
    let mut characters = text.chars();
    let first = characters.next()?;
    let second = characters.next().map(Class::of);
    if let Some(len) = contraction(text, true) {
        return Some(len);
    }
    let class = Class::of(first);
    let newline = |c| matches!(c, '\r' | '\n');
    if class == Class::Letter || (class != Class::Number && !newline(first) && second == Some(Class::Letter)) {
        let len = first.len_utf8();
        return Some(len + run(&text[len..], |c| Class::of(c) == Class::Letter));
    }
    if class == Class::Number {
        return Some(first.len_utf8());
    }
    let space = usize::from(first == ' ');
    if class == Class::Other || (space == 1 && second == Some(Class::Other)) {
        let len = space + run(&text[space..], |c| Class::of(c) == Class::Other);
        return Some(len + run(&text[len..], newline));
    }
    let spaces = run(text, char::is_whitespace);
    Some(match text[..spaces].rfind(newline) {
        Some(last) => last + 1,
        None => whitespace(text),
    })
}

/// Bytes of a run of whitespace at the start, less its last character if more follows: that one belongs to the next word.
fn whitespace(text: &str) -> usize {
    let len = run(text, char::is_whitespace);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || len == last { len } else { len - last }
}

/// Bytes of an English contraction at the start.
fn contraction(text: &str, ignore_case: bool) -> Option<usize> {
    let rest = text.strip_prefix('\'')?.as_bytes();
    let matches = |ending: &str| {
        let start = rest.get(..ending.len());
        start.is_some_and(
            |s| if ignore_case { s.eq_ignore_ascii_case(ending.as_bytes()) } else { s == ending.as_bytes() },
        )
    };
    let ending = ["s", "t", "re", "ve", "m", "ll", "d"].into_iter().find(|ending| matches(ending))?;
    Some(1 + ending.len())
}

/// Bytes of the longest start of `text` whose characters all belong.
fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Whitespace,
    Other,
}

impl Class {
    fn of(c: char) -> Class {
        use GeneralCategory::{
            DecimalNumber, LetterNumber, LowercaseLetter, ModifierLetter, OtherLetter, OtherNumber, TitlecaseLetter,
            UppercaseLetter,
        };
        match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            _ if c.is_whitespace() => Class::Whitespace,
            _ if c.is_ascii() => Class::Other,
            _ => match get_general_category(c) {
                UppercaseLetter | LowercaseLetter | TitlecaseLetter | ModifierLetter | OtherLetter => Class::Letter,
                DecimalNumber | LetterNumber | OtherNumber => Class::Number,
                _ => Class::Other,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(rule: PreTokenizer, text: &str) -> Vec<&str> {
        rule.words(text).collect()
    }

    #[test]
    fn gpt2_keeps_one_space_before_a_word() {
        let cut = words(PreTokenizer::Gpt2, "It's  a 12 cat!?\n\n x 'S ");
        assert_eq!(cut, ["It", "'s", " ", " a", " 12", " cat", "!?", "\n\n", " x", " '", "S", " "]);
    }

    #[test]
    fn smollm_cuts_digits_out_before_anything_else() {
        // The two spaces stay together: the rule between digits does not see the 4.
        assert_eq!(words(PreTokenizer::Smollm, "a 12  4b ½٣"), ["a", " ", "1", "2", "  ", "4", "b", " ", "½", "٣"]);
    }

    #[test]
    fn qwen2_ends_words_at_line_ends() {
        let cut = words(PreTokenizer::Qwen2, "(x'LLy) 12\t\ty;\r\n  \n  z\n");
        assert_eq!(cut, ["(x", "'LL", "y", ")", " ", "1", "2", "\t", "\ty", ";\r\n", "  \n", " ", " z", "\n"]);
    }

    #[test]
    fn classes_are_general_categories() {
        let class = |text: &str| text.chars().map(Class::of).collect::<Vec<_>>();
        assert_eq!(class("aßʰǅ中"), [Class::Letter; 5]);
        assert_eq!(class("7²Ⅷ၄"), [Class::Number; 4]);
        assert_eq!(class("\u{301}_€\u{200b}😀\u{378}"), [Class::Other; 6]);
        assert_eq!(class(" \n\u{a0}\u{3000}\u{85}"), [Class::Whitespace; 5]);
    }

    #[test]
    fn an_unknown_name_is_said_with_all_known_ones() {
        let message = PreTokenizer::named(Some("tekken")).unwrap_err().to_string();
        assert!(message.starts_with("unknown pre-tokenizer 'tekken' (supported: gpt-2, "), "{message}");
        assert!(message.contains("smollm") && message.contains("qwen2"), "{message}");
        assert!(PreTokenizer::named(None).unwrap_err().to_string().contains("no tokenizer.ggml.pre"));
    }
}
