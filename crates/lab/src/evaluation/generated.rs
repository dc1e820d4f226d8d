//! Word problems as GSM8K is asked: the model writes on until it stops, and a number is looked for in what it wrote.

use super::rows::Row;
use super::task::{Expected, Question};
use regex_lite::Regex;

/// Most tokens of an answer.
pub(super) const ANSWER_TOKENS: usize = 256;
/// Where an answer ends.
pub(super) const STOP: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];
/// What stands for an answer in which no number was found.
const INVALID: &str = "[invalid]";

/// An example with its answer.
pub(super) fn example(row: &Row, answer: &str) -> String {
    format!("{} {answer}\n\n", prompt(&row.question))
}

pub(super) fn question(index: usize, row: &Row, answer: &str) -> Question {
    Question { index, text: prompt(&row.question), expected: Expected::Number { answer: answer.to_owned() } }
}

fn prompt(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

/// How numbers are found in answers.
pub(super) struct Judge {
    strict: Regex,
    flexible: Regex,
}

/// Whether an answer is right by two rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The first number after `#### `.
    pub(super) strict: bool,
    /// The last number anywhere.
    pub(super) flexible: bool,
}

impl Judge {
    pub(super) fn new() -> Judge {
        let compile = |pattern| Regex::new(pattern).expect("the pattern is well formed");
        Judge { strict: compile(r"#### (-?[0-9.,]+)"), flexible: compile(r"-?[$0-9.,]{2,}|-?[0-9]+") }
    }

    /// Judges an answer by the worked one.
    pub(super) fn judge(&self, answer: &str, worked: &str) -> Verdict {
        let strict = self.strict.captures(answer).map_or(INVALID, |found| found.get(1).map_or(INVALID, |m| m.as_str()));
        let flexible = self.flexible.find_iter(answer).last().map_or(INVALID, |found| found.as_str());
        let right = normalised(worked);
        Verdict { strict: normalised(strict) == right, flexible: normalised(flexible) == right }
    }
}

/// Without `,`, `$`, all up to the last `#### ` and a full stop at the end, in lower case.
fn normalised(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let number = text.rsplit_once("#### ").map_or(text.as_str(), |(_, number)| number);
    number.strip_suffix('.').unwrap_or(number).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn judged(answer: &str, worked: &str) -> (bool, bool) {
        let Verdict { strict, flexible } = Judge::new().judge(answer, worked);
        (strict, flexible)
    }

    /// What lm-evaluation-harness says of made-up answers (fixtures/evaluation).
    #[test]
    fn answers_are_judged_as_the_harness_judges_them() {
        let fixture = include_str!("../../../../fixtures/evaluation/harness.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let rows = fixture["judged"].as_array().unwrap();
        assert!(rows.iter().any(|row| row["strict"] != row["flexible"]));
        for row in rows {
            let found = judged(row["text"].as_str().unwrap(), row["worked"].as_str().unwrap());
            assert_eq!(found, (row["strict"] == true, row["flexible"] == true), "{row}");
        }
    }

    #[test]
    fn strict_takes_the_first_number_after_the_mark_flexible_the_last_anywhere() {
        assert_eq!(judged(" 3 + 4 = 7\n#### 7", "2 + 5\n#### 7"), (true, true));
        assert_eq!(judged("#### 7\n#### 8", "#### 7"), (true, false));
        assert_eq!(judged("It is 7", "#### 7"), (false, true));
        assert_eq!(judged("####7", "#### 7"), (false, true));
        assert_eq!(judged("nothing", "#### 7"), (false, false));
    }

    #[test]
    fn numbers_are_compared_without_their_trimmings() {
        assert_eq!(judged("#### 1,234.", "#### 1234"), (true, true));
        assert_eq!(judged("She has $1,234.", "#### 1,234"), (false, true));
        assert_eq!(judged("#### -5", "#### -5"), (true, true));
        assert_eq!(judged("#### 5.0", "#### 5"), (false, false));
        // As the harness has it: two of `$.,` and digits are a number even without any digit.
        assert_eq!(judged("It is 7...", "#### 7"), (false, false));
    }
}
