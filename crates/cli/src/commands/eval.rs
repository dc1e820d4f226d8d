//! `moce eval`: accuracy on MMLU, GSM8K, or questions from a file.

use super::perplexity::caches;
use super::{Setting, check_target, open_engine, write_json};
use crate::arguments::{
    Global, ModelOptions, RoutingPrompt, STUDY_CAPACITY, STUDY_CAPACITY_TEXT, positive, whole, with_default,
};
use crate::report::usage;
use crate::{interrupt, report};
use anyhow::Context;
use clap::{Args, ValueHint};
use moce_engine::Session;
use moce_lab::evaluation::{
    EvaluationHeader, EvaluationReport, Outcome, ResultFile, Shots, Task, TaskSource, evaluate, read_results,
};
use moce_lab::statistics::Interval;
use serde::Serialize;
use std::collections::HashSet;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(mut_arg("capacity", |option| with_default(option, STUDY_CAPACITY_TEXT)))]
#[command(mut_arg("routing_prompt", |option| with_default(option, "same")))]
pub(crate) struct Eval {
    /// mmlu, gsm8k, or a file of questions, one JSON object a line
    #[arg(value_name = "mmlu|gsm8k|FILE.jsonl", value_hint = ValueHint::FilePath)]
    pub(crate) task: String,
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// The folder with the data: test/ and dev/ for mmlu, test.jsonl and train.jsonl for gsm8k, or one folder above;
    /// for FILE.jsonl a folder to look in, where it is not there as given
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: Option<PathBuf>,
    /// Ask only the first N questions of each subject
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<usize>,
    /// Ask only these subjects, such as anatomy,virology
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) subjects: Option<Vec<String>>,
    /// Take the examples in the prompts from this file, of the same format as FILE.jsonl
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) shots: Option<PathBuf>,
    /// Examples in a prompt, the first of their file (of GSM8K too, whose examples lm-evaluation-harness draws); questions from a file have
    /// none without --shots [default: 5]
    #[arg(long, value_name = "N", value_parser = whole(0..=usize::MAX))]
    pub(crate) shot_count: Option<usize>,
    /// Write each question's result here; a run that was broken off goes on where it stopped
    #[arg(short, long, value_name = "RESULT.jsonl", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Begin the file of results anew
    #[arg(long, requires = "output")]
    pub(crate) force: bool,
    /// Compare, question by question, with an earlier run's results
    #[arg(long, value_name = "RESULT.jsonl", value_hint = ValueHint::FilePath)]
    pub(crate) baseline: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: ModelOptions,
}

pub(crate) fn run(arguments: &Eval, global: &Global) -> anyhow::Result<()> {
    arguments.output.as_deref().map_or(Ok(()), check_target)?;
    let task = read_task(arguments)?;
    let baseline = arguments.baseline.as_deref().map(|path| read_baseline(path, &task)).transpose()?;
    let engine = open_engine(arguments.model.as_deref(), &arguments.options, global, RoutingPrompt::Same, |options| {
        options.spare_slots = true;
        options.capacity.get_or_insert(STUDY_CAPACITY);
    })?;
    interrupt::listen();
    let mut session = Session::new(&engine)?;
    let mut header = EvaluationHeader::new(&task.name, &session);
    header.limit = arguments.limit;
    header.subjects = arguments.subjects.clone().map(|mut subjects| {
        subjects.sort();
        subjects.dedup();
        subjects
    });
    let (mut file, mut outcomes) = match &arguments.output {
        Some(path) => {
            let (file, before) = ResultFile::open(path, &header, arguments.force)?;
            let before = task.known(before).with_context(|| format!("{}: --force begins anew", path.display()))?;
            (Some(file), before)
        }
        None => (None, Vec::new()),
    };
    let key = |outcome: &Outcome| (outcome.subject.clone(), outcome.question);
    let outcomes_before: HashSet<(String, usize)> = outcomes.iter().map(key).collect();
    let bar = report::progress_bar(global.quiet, "{pos}/{len} questions  {msg}");
    bar.set_length(task.questions() as u64);
    bar.set_position(outcomes.len() as u64);
    let mut correct = outcomes.iter().filter(|outcome| outcome.correct).count();
    let wanted = |subject: &str, question: usize| !outcomes_before.contains(&(subject.to_owned(), question));
    evaluate(&mut session, &task, &|subject, question| wanted(&subject.name, question.index), &mut |outcome| {
        correct += usize::from(outcome.correct);
        if let Some(file) = &mut file {
            file.append(&outcome)?;
        }
        outcomes.push(outcome);
        bar.set_position(outcomes.len() as u64);
        bar.set_message(format!("{:.1} % right", 100.0 * correct as f64 / outcomes.len() as f64));
        Ok(if interrupt::happened() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
    .map_err(|error| match &arguments.output {
        Some(_) => interrupt::resumable(error, arguments.force),
        None => error.into(),
    })?;
    bar.finish_and_clear();
    if let Some(file) = file {
        file.finish()?;
    }
    let mut report = EvaluationReport::new(&header, &outcomes);
    // A comparison that fails costs no report.
    let compared =
        baseline.map_or(Ok(()), |(other, baseline)| report.compare((&header, &outcomes), (&other, &baseline)));
    if global.json {
        let document = Document { setting: Setting::of(&engine), report: &report };
        write_json(&mut std::io::stdout().lock(), &document)?;
    } else {
        print(&report)?;
    }
    Ok(compared?)
}

/// Results to compare with, which answer the same questions.
fn read_baseline(path: &Path, task: &Task) -> anyhow::Result<(EvaluationHeader, Vec<Outcome>)> {
    let (header, outcomes) = read_results(path)?;
    let context = || path.display().to_string();
    let known = task.known(outcomes).with_context(context)?;
    if known.is_empty() {
        return Err(moce_lab::Error::OtherQuestions).with_context(context);
    }
    Ok((header, known))
}

fn read_task(arguments: &Eval) -> anyhow::Result<Task> {
    let data = || arguments.data.clone().ok_or_else(|| usage("--data DIR says where the questions are"));
    let source = match arguments.task.as_str() {
        "mmlu" => TaskSource::Mmlu(data()?),
        "gsm8k" => TaskSource::Gsm8k(data()?),
        file => {
            let in_data = arguments.data.iter().map(|data| data.join(file));
            match std::iter::once(file.into()).chain(in_data).find(|path: &PathBuf| path.is_file()) {
                Some(path) => TaskSource::File(path),
                None => {
                    let problem =
                        format_args!("'{file}' is neither mmlu nor gsm8k, and there is no such file of questions");
                    return Err(usage(problem));
                }
            }
        }
    };
    if matches!(source, TaskSource::File(_)) && arguments.shots.is_none() && arguments.shot_count.is_some() {
        return Err(usage("--shot-count needs --shots: a file of questions has no examples of its own"));
    }
    let shots = Shots { file: arguments.shots.clone(), count: arguments.shot_count.unwrap_or(5) };
    let expected = match source {
        TaskSource::Mmlu(_) => "--data is a folder with test/SUBJECT_test.csv and dev/SUBJECT_dev.csv, or one above it",
        TaskSource::Gsm8k(_) => "--data is a folder with test.jsonl and train.jsonl, or one above it",
        _ => "a file of questions has one JSON object a line (docs/formats/evaluation.md)",
    };
    let hint = |error: &moce_lab::Error| match error {
        moce_lab::Error::File { path, .. } if arguments.shots.as_ref() == Some(path) => Some(format!(
            "--shots {}: a file of examples has one JSON object a line (docs/formats/evaluation.md)",
            path.display()
        )),
        moce_lab::Error::File { .. } => Some(expected.to_owned()),
        _ => None,
    };
    let mut task = source.read(&shots, arguments.subjects.as_deref()).map_err(|error| match hint(&error) {
        Some(hint) => anyhow::Error::new(error).context(hint),
        None => error.into(),
    })?;
    if let Some(limit) = arguments.limit {
        task.limit(limit);
    }
    Ok(task)
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    setting: Setting,
    #[serde(flatten)]
    report: &'a EvaluationReport,
}

fn print(report: &EvaluationReport) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    if report.per_subject.len() > 1 {
        for subject in &report.per_subject {
            let share = 100.0 * subject.accuracy;
            writeln!(output, "{:40} {share:6.2} %  ({} of {})", subject.subject, subject.correct, subject.questions)?;
        }
        writeln!(output)?;
    }
    let interval = percent(report.accuracy_interval);
    writeln!(
        output,
        "right       {:.2} %  (95 %: {interval}; {} of {})",
        100.0 * report.accuracy,
        report.correct,
        report.questions
    )?;
    if let (Some(share), Some(interval)) = (report.flexible_accuracy, report.flexible_accuracy_interval) {
        writeln!(
            output,
            "flexible    {:.2} %  (95 %: {}; the last number of the answer counts)",
            100.0 * share,
            percent(interval)
        )?;
    }
    if report.cut_prompts > 0 {
        writeln!(output, "cut         prompts that did not fit the context: {} (--ctx)", report.cut_prompts)?;
    }
    if !report.capacity.is_empty() {
        let caches = caches(&report.eviction, &report.capacity);
        writeln!(output, "misses      {:.2} % of the choices  ({caches})", 100.0 * report.miss_rate)?;
        let changed = 100.0 * report.changed_share;
        let routing = report::routing(&report.routing, &report.routing_prompt);
        writeln!(output, "routing     {routing}, {changed:.2} % of the choices changed")?;
    }
    let Some(comparison) = &report.comparison else { return Ok(()) };
    let difference = 100.0 * comparison.accuracy_difference;
    let range = percent(comparison.accuracy_difference_interval);
    writeln!(
        output,
        "baseline    {}: {difference:+.2} points (95 %: {range}) on {} questions; right only here {}, only there {}; McNemar p = {:.3}",
        report::routing(&comparison.baseline_routing, &comparison.baseline_routing_prompt),
        comparison.questions,
        comparison.only_here,
        comparison.only_baseline,
        comparison.mcnemar_p
    )?;
    if !comparison.other_differences.is_empty() {
        writeln!(output, "            it differs in {}, too", comparison.other_differences.join(", "))?;
    }
    Ok(())
}

/// `12.30 to 15.60 %`
fn percent(interval: Interval) -> String {
    format!("{:.2} to {:.2} %", 100.0 * interval.low, 100.0 * interval.high)
}
