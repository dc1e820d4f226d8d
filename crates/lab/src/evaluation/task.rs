//! What is asked: subjects, their shared beginning, their questions.

use super::results::Outcome;
use crate::Error;
use crate::fingerprint::fingerprint;
use std::collections::HashSet;

/// Questions to ask.
#[derive(Clone, Debug)]
pub struct Task {
    /// `mmlu`, `gsm8k`, or the name of a file.
    pub name: String,
    /// In the order of the files.
    pub subjects: Vec<Subject>,
}

/// Questions that share the beginning of their prompts.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As in the files; empty where they name none.
    pub name: String,
    /// Description and example questions with their answers.
    pub prefix: String,
    /// In the order of the file.
    pub questions: Vec<Question>,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its place among the questions of the subject's file, from 0.
    pub index: usize,
    /// What follows the subject's prefix.
    pub text: String,
    /// What counts as right.
    pub expected: Expected,
}

/// What counts as the right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// The continuation with the highest log likelihood is the model's choice.
    Choice {
        /// ` A`, ` B`, ...
        continuations: Vec<String>,
        /// The index of the right one.
        right: usize,
    },
    /// The model writes an answer, in which a number is looked for.
    Number {
        /// The worked answer, ending in `#### ` and the number.
        answer: String,
    },
}

impl Task {
    /// Questions in all.
    pub fn questions(&self) -> usize {
        self.subjects.iter().map(|subject| subject.questions.len()).sum()
    }

    /// Only the first `limit` questions of every subject.
    pub fn limit(&mut self, limit: usize) {
        self.subjects.iter_mut().for_each(|subject| subject.questions.truncate(limit));
    }

    /// Of earlier outcomes those that answer questions of this task, each once.
    ///
    /// # Errors
    /// One had another prompt, or was judged by another key.
    pub fn known(&self, outcomes: Vec<Outcome>) -> Result<Vec<Outcome>, Error> {
        let mut answered = HashSet::new();
        let mut known = Vec::new();
        for outcome in outcomes {
            let subject = self.subjects.iter().find(|subject| subject.name == outcome.subject);
            let question = subject.and_then(|s| Some((s, s.questions.iter().find(|q| q.index == outcome.question)?)));
            let Some((subject, question)) = question else { continue };
            if subject.fingerprint(question) != outcome.prompt {
                return Err(Error::OtherPrompts);
            }
            if !outcome.is_judged_by(&question.expected) {
                return Err(Error::OtherKey);
            }
            if answered.insert((outcome.subject.clone(), outcome.question)) {
                known.push(outcome);
            }
        }
        Ok(known)
    }
}

impl Subject {
    /// A fingerprint of a question's whole prompt and its continuations, to tell whether two runs asked the same.
    pub fn fingerprint(&self, question: &Question) -> String {
        let continuations: &[String] = match &question.expected {
            Expected::Choice { continuations, .. } => continuations,
            Expected::Number { .. } => &[],
        };
        let texts = [&self.prefix, &question.text].into_iter().chain(continuations);
        // No UTF-8 text holds the byte 0xFF.
        fingerprint(texts.flat_map(|text| [text.as_bytes(), &[0xFF]]))
    }
}
