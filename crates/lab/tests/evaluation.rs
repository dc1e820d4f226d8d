//! What a question gives does not depend on which others are asked, and two runs are compared question by question.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

mod support;

use moce_engine::Session;
use moce_engine::tokenizer::SpecialTokens;
use moce_lab::Error;
use moce_lab::evaluation::{
    EvaluationHeader, EvaluationReport, Expected, Outcome, OutcomeAnswer, Question, Shots, Subject, Task, TaskSource,
};
use std::path::Path;
use support::{ask, open};

/// The project's own questions, two examples a subject.
fn exercises() -> Task {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../training/exercises/test/multiple-choice.jsonl");
    let shots = Shots { file: Some(path.clone()), count: 2 };
    let mut task = TaskSource::File(path).read(&shots, None).unwrap();
    task.subjects.truncate(2);
    task.limit(5);
    task
}

#[test]
fn a_question_alone_gives_what_it_gives_among_others() {
    let engine = open(1024, "cache-prior:lambda=0.5,j=1");
    let task = exercises();
    let all = ask(&engine, &task, &|_| true);
    assert_eq!(all.len(), 10);
    let odd = ask(&engine, &task, &|question| question % 2 == 1);
    assert_eq!(odd, all.iter().filter(|outcome| outcome.question % 2 == 1).cloned().collect::<Vec<_>>());
    // Alone, all of a prompt but its last token is shared; among others, much less is.
    let one = ask(&engine, &task, &|question| question == 1);
    assert_eq!(one, all.iter().filter(|outcome| outcome.question == 1).cloned().collect::<Vec<_>>());
    assert!(all.iter().any(|outcome| outcome.changed > 0), "the policy fired");

    for outcome in &all {
        let subject = task.subjects.iter().find(|subject| subject.name == outcome.subject).unwrap();
        let question = &subject.questions[outcome.question];
        let text = format!("{}{}", subject.prefix, question.text);
        let tokens = engine.tokenizer().encode(&text, SpecialTokens::Parse).unwrap();
        let Expected::Choice { continuations, .. } = &question.expected else { panic!("no choice") };
        let OutcomeAnswer::Choice { log_likelihoods, .. } = &outcome.answer else { panic!("no choice") };
        for (continuation, log_likelihood) in continuations.iter().zip(log_likelihoods) {
            let continuation = engine.tokenizer().encode(continuation, SpecialTokens::Parse).unwrap();
            let mut session = Session::new(&engine).unwrap();
            session.prompt(&tokens).unwrap();
            let mut sum = 0.0;
            for &token in &continuation {
                let logits = session.logits();
                let log_sum = logits.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
                sum += f64::from(logits[token as usize]) - log_sum;
                session.decode(token).unwrap();
            }
            assert!((sum - log_likelihood).abs() < 1e-9, "{sum} {log_likelihood}");
        }
    }
}

#[test]
fn two_policies_are_compared_question_by_question() {
    let task = exercises();
    let runs = ["original", "prune:k=1"].map(|policy| {
        let engine = open(1024, policy);
        let header = EvaluationHeader::new(&task.name, &Session::new(&engine).unwrap());
        (header, ask(&engine, &task, &|_| true))
    });
    let [(other, original), (header, outcomes)] = &runs;
    let mut report = EvaluationReport::new(header, outcomes);
    report.compare((header, outcomes), (other, original)).unwrap();
    let comparison = report.comparison.unwrap();
    let right = |outcomes: &[Outcome]| outcomes.iter().filter(|outcome| outcome.correct).count() as i64;
    let gained = comparison.only_here as i64 - comparison.only_baseline as i64;
    assert_eq!((comparison.questions, gained), (10, right(outcomes) - right(original)));
    assert!((comparison.accuracy_difference - gained as f64 / 10.0).abs() < 1e-12);

    let mut changed = original.clone();
    changed[0].prompt = "another".to_owned();
    assert!(EvaluationReport::new(header, outcomes).compare((header, outcomes), (other, &changed)).is_err());
    // The same is known before anything is asked.
    let known = |outcomes: &[Outcome]| task.known(outcomes.to_vec());
    assert_eq!(known(&original[3..4]).unwrap(), original[3..4]);
    // What is no longer asked is left out, and what is there twice counts once.
    let mut elsewhere = original[0].clone();
    elsewhere.subject = "elsewhere".to_owned();
    assert_eq!(known(&[original.as_slice(), &[elsewhere, original[2].clone()]].concat()).unwrap(), *original);
    let mut other_key = original.clone();
    let OutcomeAnswer::Choice { right, .. } = &mut other_key[0].answer else { panic!("no choice") };
    *right += 1;
    assert!(matches!(known(&other_key), Err(Error::OtherKey)));
    assert!(matches!(known(&changed), Err(Error::OtherPrompts)));
}

/// Letters leave a cut prompt equally many tokens, so that it runs once; longer answers leave it fewer.
#[test]
fn a_cut_prompt_runs_once_for_answers_of_one_length() {
    const CONTEXT: usize = 16;
    let engine = open(CONTEXT as u32, "original");
    let layers = engine.plan().experts.len();
    let tokens = |text: &str| engine.tokenizer().encode(text, SpecialTokens::Parse).unwrap();
    let asked = |continuations: [&str; 3]| {
        let continuations = continuations.map(str::to_owned).to_vec();
        let text = "Which of these is the right one? ".repeat(8);
        let question =
            Question { index: 0, text: text.clone(), expected: Expected::Choice { continuations, right: 0 } };
        let subject = Subject { name: String::new(), prefix: String::new(), questions: vec![question] };
        let outcomes = ask(&engine, &Task { name: "cut".to_owned(), subjects: vec![subject] }, &|_| true);
        let [outcome] = <[Outcome; 1]>::try_from(outcomes).unwrap();
        assert!(outcome.cut);
        let OutcomeAnswer::Choice { log_likelihoods, .. } = outcome.answer else { panic!("no choice") };
        (outcome.layer_tokens, log_likelihoods, tokens(&text))
    };
    let (letters, one, text) = asked([" A", " B", " C"]);
    let letter = tokens(" A").len();
    assert_eq!(letters as usize, layers * (CONTEXT + 1 - letter + 3 * (letter - 1)));
    let (mixed, other, _) = asked([" A", " a longer answer", " C"]);
    // Before each of the three as much of the context as it leaves room for, and all of it but its last token.
    assert!(tokens(" a longer answer").len() > letter);
    assert_eq!(mixed as usize, 3 * layers * CONTEXT);
    assert_eq!((one[0], one[2]), (other[0], other[2]));
    for (continuation, log_likelihood) in [(" A", other[0]), (" a longer answer", other[1])] {
        let continuation = tokens(continuation);
        let mut session = Session::new(&engine).unwrap();
        session.prompt(&text[text.len() + continuation.len() - CONTEXT - 1..]).unwrap();
        let mut sum = 0.0;
        for (index, &token) in continuation.iter().enumerate() {
            let logits = session.logits();
            let log_sum = logits.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
            sum += f64::from(logits[token as usize]) - log_sum;
            if index + 1 < continuation.len() {
                session.decode(token).unwrap();
            }
        }
        assert!((sum - log_likelihood).abs() < 1e-9, "{sum} {log_likelihood}");
    }
}
