//! Multiple choice as MMLU is asked: the choices stand in the prompt behind letters, and the answer is a letter.

use super::rows::Row;
use super::task::{Expected, Question};

/// What stands before the examples.
pub(super) fn description(subject: &str) -> String {
    if subject.is_empty() {
        return "The following are multiple choice questions (with answers).\n\n".to_owned();
    }
    format!("The following are multiple choice questions (with answers) about {}.\n\n", subject.replace('_', " "))
}

/// An example with its answer.
pub(super) fn example(row: &Row, choices: &[String], right: usize) -> String {
    format!("{}{}\n\n", prompt(&row.question, choices), continuation(right))
}

pub(super) fn question(index: usize, row: &Row, choices: &[String], right: usize) -> Question {
    let continuations = (0..choices.len()).map(continuation).collect();
    Question { index, text: prompt(&row.question, choices), expected: Expected::Choice { continuations, right } }
}

fn prompt(question: &str, choices: &[String]) -> String {
    let mut prompt = question.trim().to_owned();
    for (index, choice) in choices.iter().enumerate() {
        prompt += &format!("\n{}. {choice}", letter(index));
    }
    prompt + "\nAnswer:"
}

fn continuation(index: usize) -> String {
    format!(" {}", letter(index))
}

/// A, B, ...; there are at most 26 choices.
fn letter(index: usize) -> char {
    char::from(b'A' + index as u8)
}
