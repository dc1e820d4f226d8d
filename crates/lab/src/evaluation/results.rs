//! The file of results: JSON lines, a header and one line a question, in the order in which they were asked.
//!
//! While questions are being asked it is a [`PartialFile`]. Documented in `docs/formats/evaluation.md`.

use super::generated::Judge;
use super::task::Expected;
use crate::Error;
use crate::fingerprint::start_text;
use crate::partial::{self, Header, PartialFile};
use moce_engine::{ModelIdentity, Session};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of the format.
const VERSION: u32 = 2;

/// The first line: what was asked, and of what. Results of one file agree in all of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EvaluationHeader {
    /// 2.
    pub moce_evaluation: u32,
    /// `mmlu`, `gsm8k`, or the name of a file.
    pub task: String,
    /// Asked are only so many questions of each subject, the first ones; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Asked are only these subjects, in alphabetical order; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subjects: Option<Vec<String>>,
    /// Which model.
    pub model: ModelIdentity,
    /// The routing policy of generated tokens, with all parameters.
    pub routing: String,
    /// That of prompt tokens.
    pub routing_prompt: String,
    /// Which cached expert leaves.
    pub eviction: String,
    /// Experts logically cached, by MoE layer.
    pub capacity: Vec<usize>,
    /// In which order a token's experts become most recent.
    pub touch: String,
    /// What is cached before the first token; of given lists the fingerprint.
    pub start: String,
    /// How keys and values are kept.
    pub kv: String,
    /// Positions that a prompt may take.
    pub context: usize,
}

impl EvaluationHeader {
    /// For a session's routing and a task, of which everything is asked.
    pub fn new(task: &str, session: &Session) -> EvaluationHeader {
        let routing = session.routing();
        EvaluationHeader {
            moce_evaluation: VERSION,
            task: task.to_owned(),
            limit: None,
            subjects: None,
            model: session.engine().identity(),
            routing: routing.options().policy.to_string(),
            routing_prompt: routing.options().prompt_policy.to_string(),
            eviction: routing.options().eviction.to_string(),
            capacity: (0..routing.layer_count()).map(|layer| routing.shape(layer).capacity).collect(),
            touch: routing.options().touch.to_string(),
            start: start_text(&routing.options().start),
            kv: session.engine().plan().kv_type.to_string(),
            context: session.engine().context(),
        }
    }

    /// What differs from another run besides its routing policy, by the names of the fields: a paired comparison then is of that, too.
    pub fn other_differences(&self, other: &EvaluationHeader) -> Vec<&'static str> {
        let same = [
            ("model", self.model == other.model),
            ("eviction", self.eviction == other.eviction),
            ("capacity", self.capacity == other.capacity),
            ("touch", self.touch == other.touch),
            ("start", self.start == other.start),
            ("kv", self.kv == other.kv),
            ("context", self.context == other.context),
        ];
        same.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
    }
}

/// One question's line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outcome {
    /// As in the task; may be empty.
    pub subject: String,
    /// Its index in the subject's file, from 0.
    pub question: usize,
    /// A fingerprint of the whole prompt: the same in two runs that asked the same.
    pub prompt: String,
    /// Tokens before the answer, examples included.
    pub prompt_tokens: usize,
    /// Whether the prompt had to be cut.
    pub cut: bool,
    /// Whether the answer is right; of numbers, by the strict rule.
    pub correct: bool,
    /// What was answered.
    #[serde(flatten)]
    pub answer: OutcomeAnswer,
    /// tokens · layers · K of the whole prompt and the answer.
    pub selections: u64,
    /// Of these: not cached before their token.
    pub misses: u64,
    /// Of these: the model's own choices that did not run.
    pub changed: u64,
    /// tokens · layers
    pub layer_tokens: u64,
}

impl Outcome {
    /// Whether the key of a question still says of this answer what it said when it was judged.
    pub fn is_judged_by(&self, key: &Expected) -> bool {
        match (&self.answer, key) {
            (OutcomeAnswer::Choice { right, .. }, Expected::Choice { right: now, .. }) => right == now,
            (OutcomeAnswer::Text { text, strict, flexible }, Expected::Number { answer }) => {
                let verdict = Judge::new().judge(text, answer);
                (verdict.strict, verdict.flexible) == (*strict, *flexible)
            }
            _ => false,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum OutcomeAnswer {
    /// One of several choices.
    Choice {
        /// The index of the likeliest.
        choice: usize,
        /// The index of the right one.
        right: usize,
        /// ln p of each.
        log_likelihoods: Vec<f64>,
    },
    /// A text with a number in it.
    Text {
        /// What was generated.
        text: String,
        /// Whether the first number after `#### ` is right.
        strict: bool,
        /// Whether the last number is.
        flexible: bool,
    },
}

/// The file of results that grows.
pub type ResultFile = PartialFile<EvaluationHeader, Outcome>;

impl Header for EvaluationHeader {
    const KIND: &'static str = "moce_evaluation";
    const VERSION: u32 = VERSION;
}

/// Reads a file of results, whole or partial. A last line without its end is left out.
///
/// # Errors
/// The file cannot be read, or is no file of results.
pub fn read_results(path: &Path) -> Result<(EvaluationHeader, Vec<Outcome>), Error> {
    partial::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(routing: &str) -> EvaluationHeader {
        EvaluationHeader {
            moce_evaluation: VERSION,
            task: "mmlu".to_owned(),
            limit: None,
            subjects: None,
            model: ModelIdentity::try_from("0123456789abcdef".to_owned()).unwrap(),
            routing: routing.to_owned(),
            routing_prompt: "original".to_owned(),
            eviction: "lru".to_owned(),
            capacity: vec![6, 6],
            touch: "strong-first".to_owned(),
            start: "empty".to_owned(),
            kv: "f16".to_owned(),
            context: 128,
        }
    }

    fn outcome(question: usize) -> Outcome {
        Outcome {
            subject: "s".to_owned(),
            question,
            prompt: "00".to_owned(),
            prompt_tokens: 9,
            cut: false,
            correct: true,
            answer: OutcomeAnswer::Choice { choice: 1, right: 1, log_likelihoods: vec![-1.5, -0.1] },
            selections: 4,
            misses: 2,
            changed: 1,
            layer_tokens: 2,
        }
    }

    #[test]
    fn a_run_that_was_broken_off_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let (mut file, before) = ResultFile::open(&path, &header("original"), false).unwrap();
        assert!(before.is_empty());
        file.append(&outcome(0)).unwrap();
        file.append(&outcome(1)).unwrap();
        drop(file);
        let partial = folder.path().join("r.jsonl.partial");
        let text = std::fs::read_to_string(&partial).unwrap();
        std::fs::write(&partial, &text[..text.len() - 5]).unwrap();

        assert!(matches!(ResultFile::open(&path, &header("prune"), false), Err(Error::OtherResults { .. })));
        let (mut file, before) = ResultFile::open(&path, &header("original"), false).unwrap();
        assert_eq!(before, [outcome(0)], "the broken line is asked again");
        for force in [false, true] {
            let beside = ResultFile::open(&path, &header("original"), force);
            assert!(matches!(beside, Err(Error::ResultsInUse { .. })), "two runs would mix");
        }
        file.append(&outcome(1)).unwrap();
        file.finish().unwrap();
        assert_eq!(read_results(&path).unwrap(), (header("original"), vec![outcome(0), outcome(1)]));
        assert!(!partial.exists());
        assert!(matches!(ResultFile::open(&path, &header("original"), false), Err(Error::ResultsExist { .. })));
        assert!(ResultFile::open(&path, &header("original"), true).unwrap().1.is_empty());
    }

    #[test]
    fn a_part_of_the_questions_is_another_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let all = header("original");
        ResultFile::open(&path, &all, false).unwrap().0.append(&outcome(0)).unwrap();
        let few = EvaluationHeader { limit: Some(1), ..all.clone() };
        let one = EvaluationHeader { subjects: Some(vec!["s".to_owned()]), ..all.clone() };
        for part in [few, one] {
            assert!(matches!(ResultFile::open(&path, &part, false), Err(Error::OtherResults { .. })));
            let text = serde_json::to_string(&part).unwrap();
            assert_eq!(serde_json::from_str::<EvaluationHeader>(&text).unwrap(), part);
        }
        assert_eq!(ResultFile::open(&path, &all, false).unwrap().1, [outcome(0)]);
        // As files were written that know of no parts.
        let text = serde_json::to_string(&all).unwrap();
        assert!(!text.contains("limit") && !text.contains("subjects"), "{text}");
    }

    #[test]
    fn a_run_that_begins_anew_can_be_broken_off_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let open = |force| ResultFile::open(&path, &header("original"), force);
        open(false).unwrap().0.finish().unwrap();
        let (mut file, _) = open(true).unwrap();
        file.append(&outcome(0)).unwrap();
        drop(file);
        let (file, before) = open(false).unwrap();
        assert_eq!(before, [outcome(0)]);
        file.finish().unwrap();
        assert_eq!(read_results(&path).unwrap().1, [outcome(0)]);
        // Broken off before its first line was whole, it does not make the whole file give way.
        std::fs::write(folder.path().join("r.jsonl.partial"), b"{\"moce").unwrap();
        assert!(matches!(open(false), Err(Error::ResultsExist { .. })));
        assert_eq!(read_results(&path).unwrap().1, [outcome(0)]);
    }

    #[test]
    fn a_line_may_break_off_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let partial = folder.path().join("r.jsonl.partial");
        // Within its first line a file is none yet.
        std::fs::write(&partial, b"{\"moce_evaluation\": 2, \"task\": \"\xC3").unwrap();
        let (mut file, before) = ResultFile::open(&path, &header("original"), false).unwrap();
        assert!(before.is_empty());
        file.append(&outcome(0)).unwrap();
        drop(file);
        // Whole lines stay as they are, with a space that we would not write; half a character behind them goes.
        let mut bytes = std::fs::read(&partial).unwrap();
        bytes.insert(bytes.len() - 2, b' ');
        std::fs::write(&partial, [&bytes[..], b"{\"subject\": \"\xC3"].concat()).unwrap();
        let (mut file, before) = ResultFile::open(&path, &header("original"), false).unwrap();
        assert_eq!(before, [outcome(0)]);
        file.append(&outcome(1)).unwrap();
        file.finish().unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(&bytes));
        assert_eq!(read_results(&path).unwrap().1, [outcome(0), outcome(1)]);
    }

    #[test]
    fn what_differs_besides_routing_is_named() {
        let other = EvaluationHeader { capacity: vec![3, 6], kv: "q8_0".to_owned(), ..header("prune") };
        assert_eq!(header("original").other_differences(&other), ["capacity", "kv"]);
        assert!(header("original").other_differences(&header("prune")).is_empty());
    }

    #[test]
    fn another_key_is_noticed() {
        let choice = |right| Expected::Choice { continuations: vec![" A".to_owned(), " B".to_owned()], right };
        assert!(outcome(0).is_judged_by(&choice(1)) && !outcome(0).is_judged_by(&choice(0)));
        let number = |answer: &str| Expected::Number { answer: answer.to_owned() };
        let text = OutcomeAnswer::Text { text: "It is 7\n#### 7".to_owned(), strict: true, flexible: true };
        let written = Outcome { answer: text, ..outcome(0) };
        assert!(written.is_judged_by(&number("3 + 4\n#### 7")) && !written.is_judged_by(&number("#### 8")));
        assert!(!written.is_judged_by(&choice(0)));
    }

    #[test]
    fn an_older_version_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        std::fs::write(&path, "{\"moce_evaluation\": 1, \"task\": \"mmlu\"}\n").unwrap();
        assert!(read_results(&path).unwrap_err().to_string().contains("version 1"));
    }
}
