//! `moce eval` and `moce perplexity --kl` on a tiny model, as a user calls them.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

mod support;

use serde_json::Value as Json;
use support::{refused, stdout};

/// Two that fit the tiny model's 128 positions, and one that does not.
const QUESTIONS: &str = r#"{"question": "1+1?", "choices": ["2", "3"], "answer": 0}
{"question": "1+2?", "choices": ["2", "3"], "answer": "b"}
{"question": "Which of these two numbers, taken together, are more than what was asked for before, if what was asked for before was less than what these two numbers are, taken together?", "choices": ["2", "3"], "answer": 1}
"#;

fn model() -> String {
    format!("{}/../../fixtures/models/qwen2moe.gguf", env!("CARGO_MANIFEST_DIR"))
}

fn json(arguments: &[&str]) -> Json {
    serde_json::from_str(&stdout(arguments)).unwrap()
}

#[test]
fn results_are_kept_taken_up_again_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (questions, results, other) = (file("questions.jsonl"), file("results.jsonl"), file("other.jsonl"));
    std::fs::write(&questions, QUESTIONS).unwrap();
    let model = model();
    let eval = ["eval", &questions, &model, "--json", "--quiet", "--ctx", "128"];
    let with = |more: &[&str]| json(&[&eval[..], more].concat());

    let report = with(&["-o", &results]);
    assert_eq!((&report["questions"], &report["cut_prompts"]), (&Json::from(3), &Json::from(1)));
    assert_eq!((&report["routing"], &report["changed_selections"]), (&Json::from("original"), &Json::from(0)));
    assert_eq!(
        (&report["model"], &report["kv"], &report["start"]),
        (&Json::from(&*model), &Json::from("f16"), &Json::from("empty"))
    );
    assert!(refused(&[&eval[..], &["-o", &results]].concat(), 1).contains("--force"));

    // A run that was broken off after its first question.
    let text = std::fs::read_to_string(&results).unwrap();
    let begun: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
    std::fs::write(format!("{other}.partial"), begun).unwrap();
    assert_eq!(with(&["-o", &other]), report);
    assert_eq!(std::fs::read_to_string(&other).unwrap(), text);
    // One that was broken off in its first line, and a file of something else.
    let early = format!("{}.partial", file("early.jsonl"));
    std::fs::write(&early, &text[..40]).unwrap();
    assert_eq!(with(&["-o", &file("early.jsonl")]), report);
    std::fs::write(&early, "precious").unwrap();
    assert!(refused(&[&eval[..], &["-o", &file("early.jsonl")]].concat(), 1).contains("early.jsonl"));
    assert_eq!(std::fs::read_to_string(&early).unwrap(), "precious");

    let lossy = with(&["--routing", "prune:k=1", "--baseline", &results]);
    let comparison = &lossy["comparison"];
    assert_eq!((&comparison["questions"], &comparison["baseline_routing"]), (&Json::from(3), &Json::from("original")));
    assert!(lossy["changed_share"].as_f64().unwrap() > 0.5, "{lossy}");

    // Results of other questions are refused before a model is opened.
    std::fs::write(&other, text.replace("\"prompt\":\"", "\"prompt\":\"0")).unwrap();
    let said = refused(&["eval", &questions, "nosuch.gguf", "--baseline", &other], 1);
    assert!(said.contains(&other) && said.contains("other prompts"), "{said}");

    // What differs in the policy of prompts, or in how keys and values are kept, is another run.
    let begun: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
    let partial = format!("{other}.partial");
    std::fs::write(&partial, &begun).unwrap();
    for more in [["--kv", "f32"], ["--touch", "weak-first"], ["--start", "first"], ["--limit", "1"]] {
        let said = refused(&[&eval[..], &["-o", &other], &more].concat(), 1);
        assert!(said.contains("other.jsonl.partial"), "{said}");
    }
    let two = ["--routing", "prune:k=1", "--routing-prompt", "original"];
    assert!(refused(&[&eval[..], &["-o", &other], &two].concat(), 1).contains("other.jsonl.partial"));
    // A partial file beside a whole one is gone on with.
    assert_eq!(with(&["-o", &other]), report);
    // One of other options without an answer in it costs no whole one.
    let header = text.lines().next().unwrap().replace("\"routing\":\"original\"", "\"routing\":\"prune:k=1\"");
    std::fs::write(&partial, header + "\n").unwrap();
    let whole = std::fs::read_to_string(&other).unwrap();
    assert!(refused(&[&eval[..], &["-o", &other]].concat(), 1).contains("--force"));
    assert_eq!(std::fs::read_to_string(&other).unwrap(), whole);
    std::fs::rename(&partial, format!("{}.partial", file("fresh.jsonl"))).unwrap();
    assert_eq!(with(&["-o", &file("fresh.jsonl")]), report);
    let two = stdout(&[&["eval", &questions, &model, "-q", "--ctx", "128"], &two[..]].concat());
    assert!(two.contains("routing     prune:k=1 (prompt: original)"), "{two}");
    assert!(two.contains("% of the choices  (lru, ") && two.contains(" experts cached a layer)"), "{two}");
}

#[test]
fn what_is_no_task_is_refused() {
    assert!(refused(&["eval", "nosuch", &model()], 2).contains("nosuch"));
    assert!(refused(&["eval", "mmlu", &model()], 2).contains("--data"));
    let said = refused(&["eval", "mmlu", &model(), "--data", "nosuch"], 1);
    assert!(said.contains("nosuch") && said.contains("SUBJECT_test.csv"), "{said}");
    let said = refused(&["eval", "mmlu", &model(), "--data", "nosuch", "--shots", "none.jsonl"], 1);
    assert!(said.contains("--shots none.jsonl: ") && !said.contains("--data"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let questions = folder.path().join("questions.jsonl");
    std::fs::write(&questions, QUESTIONS).unwrap();
    assert!(refused(&["eval", questions.to_str().unwrap(), "--shot-count", "2"], 2).contains("--shots"));
    assert!(refused(&["eval", questions.to_str().unwrap(), "--subjects", "nosuch"], 2).contains("nosuch"));
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "\n All that is gold does not glitter.\n").unwrap();
    let said = refused(&["eval", text.to_str().unwrap(), "nosuch.gguf"], 1);
    assert!(said.contains("line 2: no JSON object: expected value at column 2; docs/formats/evaluation.md"), "{said}");
    // Where results cannot be written is known before anything is asked.
    let target = |path: &str| refused(&["eval", "nosuch", "nosuch.gguf", "-o", path, "--force"], 1);
    let (folder_path, nowhere) = (folder.path().to_str().unwrap(), folder.path().join("no/results.jsonl"));
    assert!(target(folder_path).contains("is a folder"));
    assert!(target(nowhere.to_str().unwrap()).contains("there is no folder"));
    // It is looked for in --data, where it is: what fails then is the model.
    let data = ["eval", "questions.jsonl", "nosuch.gguf", "--data", folder.path().to_str().unwrap()];
    assert!(refused(&data, 1).contains("nosuch.gguf"));
}

#[test]
fn divergence_is_reported_with_its_interval() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "All that is gold does not glitter, not all those who wander are lost. ".repeat(16)).unwrap();
    let model = model();
    let text = text.to_str().unwrap();
    let perplexity = ["perplexity", &model, "-q", "-f", text, "--window", "32", "--kl"];
    let lossy = [&perplexity[..], &["--routing", "prune:k=1"]].concat();
    let report = json(&[&lossy[..], &["--json"]].concat());
    let number = |name: &str| report[name].as_f64().unwrap();
    assert!(number("kl_mean") > 0.0 && number("top1_agreement") < 1.0, "{report}");
    let interval = &report["kl_interval"];
    assert!(interval["low"].as_f64().unwrap() <= number("kl_mean"), "{interval}");
    assert!(number("kl_mean") <= interval["high"].as_f64().unwrap(), "{interval}");
    let (all, one) = (stdout(&lossy), stdout(&[&lossy[..], &["--limit", "32"]].concat()));
    assert!(all.matches("(95 %: ").count() == 3 && !all.contains("no interval"), "{all}");
    assert!(!one.contains("(95 %: ") && one.contains(" %  (no interval: 1 window, 8 are needed)\n"), "{one}");
    // All tokens of a text are a prompt's, and a policy that is kept from them does nothing.
    let original = ["--routing-prompt", "original"];
    let said = refused(&[&lossy[..], &original].concat(), 2);
    assert!(said.contains("--routing-prompt original") && said.contains("nothing"), "{said}");
    stdout(&[&perplexity[..], &["--limit", "32"], &original].concat());
}
