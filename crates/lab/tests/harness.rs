//! Questions are asked and judged as lm-evaluation-harness does (fixtures/evaluation).

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

mod support;

use moce_lab::evaluation::{OutcomeAnswer, Shots, TaskSource};
use moce_testkit::data_path;
use serde_json::Value as Json;
use std::path::Path;
use support::{ask, open};

fn fixture() -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/evaluation/harness.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn choices_and_likelihoods_are_those_of_the_harness() {
    let Some(folder) = data_path("mmlu") else { return };
    let fixture = fixture();
    let engine = open(fixture["context"].as_u64().unwrap() as u32, "original");
    let subjects: Vec<String> = fixture["mmlu"].as_object().unwrap().keys().cloned().collect();
    let mut task = TaskSource::Mmlu(folder).read(&Shots::default(), Some(&subjects)).unwrap();
    task.limit(5);
    let outcomes = ask(&engine, &task, &|_| true);
    assert!(outcomes.iter().any(|outcome| outcome.cut) && outcomes.iter().any(|outcome| !outcome.cut));
    let mut compared = 0;
    for outcome in outcomes {
        let row = &fixture["mmlu"][&outcome.subject][outcome.question];
        assert_eq!(row["question"], outcome.question);
        assert_eq!(row["prompt_tokens"], outcome.prompt_tokens);
        assert_eq!(row["correct"], outcome.correct);
        let OutcomeAnswer::Choice { choice, log_likelihoods, .. } = outcome.answer else { panic!("no choice") };
        assert_eq!(row["choice"], choice);
        for (ours, theirs) in log_likelihoods.iter().zip(row["log_likelihoods"].as_array().unwrap()) {
            let theirs = theirs.as_f64().unwrap();
            assert!((ours - theirs).abs() < 1e-4, "{} {}: {ours}, {theirs}", outcome.subject, outcome.question);
        }
        compared += log_likelihoods.len();
    }
    assert_eq!(compared, 3 * 5 * 4);
}

#[test]
fn generated_answers_are_those_of_the_harness() {
    let Some(folder) = data_path("gsm8k") else { return };
    let fixture = fixture();
    let engine = open(fixture["context"].as_u64().unwrap() as u32, "original");
    let rows = fixture["gsm8k"].as_array().unwrap();
    let mut task = TaskSource::Gsm8k(folder).read(&Shots::default(), None).unwrap();
    task.limit(rows.len());
    let outcomes = ask(&engine, &task, &|_| true);
    assert!(!rows.is_empty());
    assert_eq!(outcomes.len(), rows.len());
    for (outcome, row) in outcomes.into_iter().zip(rows) {
        let OutcomeAnswer::Text { text, strict, flexible } = outcome.answer else { panic!("no text") };
        assert_eq!(row["text"], text, "question {}", outcome.question);
        assert_eq!((&row["strict"], &row["flexible"]), (&Json::from(strict), &Json::from(flexible)));
    }
}
