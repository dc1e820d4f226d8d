//! What outcomes add up to: accuracy with its interval, by subject too, what the routing cost, and how two runs compare.

use super::results::{EvaluationHeader, Outcome, OutcomeAnswer};
use crate::Error;
use crate::statistics::{Interval, mcnemar, paired_difference, wilson};
use serde::Serialize;
use std::collections::HashMap;

/// The result of a task; intervals are at 95 %.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EvaluationReport {
    /// Its name.
    pub task: String,
    /// Questions answered.
    pub questions: usize,
    /// Right answers; of numbers, by the strict rule.
    pub correct: usize,
    /// correct / questions
    pub accuracy: f64,
    /// Wilson's.
    pub accuracy_interval: Interval,
    /// Where answers are generated: the share that is right by the last number in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flexible_accuracy: Option<f64>,
    /// Wilson's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flexible_accuracy_interval: Option<Interval>,
    /// Prompts that had to be cut.
    pub cut_prompts: usize,
    /// The routing policy of generated tokens, with all parameters.
    pub routing: String,
    /// That of prompt tokens.
    pub routing_prompt: String,
    /// Which cached expert leaves.
    pub eviction: String,
    /// Experts logically cached, by MoE layer.
    pub capacity: Vec<usize>,
    /// Misses as a share of tokens · layers · K, as if every question were asked alone, with its whole prompt.
    pub miss_rate: f64,
    /// The model's own choices that did not run, in the same tokens.
    pub changed_selections: u64,
    /// The same as a share.
    pub changed_share: f64,
    /// Subject by subject, in the order in which they were asked.
    pub per_subject: Vec<SubjectReport>,
    /// Beside another run on the same questions, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<ComparisonReport>,
}

/// The result of a subject.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SubjectReport {
    /// Its name.
    pub subject: String,
    /// Questions answered.
    pub questions: usize,
    /// Right answers.
    pub correct: usize,
    /// correct / questions
    pub accuracy: f64,
}

/// Two runs on the same questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ComparisonReport {
    /// The other run's routing policy.
    pub baseline_routing: String,
    /// That of its prompt tokens.
    pub baseline_routing_prompt: String,
    /// What else differs from the other run: `model`, `eviction`, `capacity`, `touch`, `start`, `kv`, `context`.
    pub other_differences: Vec<&'static str>,
    /// Questions that both answered.
    pub questions: usize,
    /// Right only in this run.
    pub only_here: u64,
    /// Right only in the other.
    pub only_baseline: u64,
    /// Accuracy of this run less that of the other.
    pub accuracy_difference: f64,
    /// Newcombe's, for paired shares.
    pub accuracy_difference_interval: Interval,
    /// McNemar's exact test, two-sided: how likely so uneven a difference is by chance.
    pub mcnemar_p: f64,
}

impl EvaluationReport {
    /// Adds up outcomes.
    pub fn new(header: &EvaluationHeader, outcomes: &[Outcome]) -> EvaluationReport {
        let questions = outcomes.len();
        let correct = outcomes.iter().filter(|outcome| outcome.correct).count();
        let flexible: Vec<bool> = outcomes
            .iter()
            .filter_map(|outcome| match outcome.answer {
                OutcomeAnswer::Text { flexible, .. } => Some(flexible),
                OutcomeAnswer::Choice { .. } => None,
            })
            .collect();
        let flexibly_right = flexible.iter().filter(|&&right| right).count();
        let sum = |part: fn(&Outcome) -> u64| outcomes.iter().map(part).sum::<u64>();
        let selections = sum(|outcome| outcome.selections);
        let changed_selections = sum(|outcome| outcome.changed);
        EvaluationReport {
            task: header.task.clone(),
            questions,
            correct,
            accuracy: share(correct, questions),
            accuracy_interval: wilson(correct as u64, questions as u64),
            flexible_accuracy: (!flexible.is_empty()).then(|| share(flexibly_right, flexible.len())),
            flexible_accuracy_interval: (!flexible.is_empty())
                .then(|| wilson(flexibly_right as u64, flexible.len() as u64)),
            cut_prompts: outcomes.iter().filter(|outcome| outcome.cut).count(),
            routing: header.routing.clone(),
            routing_prompt: header.routing_prompt.clone(),
            eviction: header.eviction.clone(),
            capacity: header.capacity.clone(),
            miss_rate: share(sum(|outcome| outcome.misses) as usize, selections as usize),
            changed_selections,
            changed_share: share(changed_selections as usize, selections as usize),
            per_subject: per_subject(outcomes),
            comparison: None,
        }
    }

    /// Compares with another run, question by question.
    ///
    /// # Errors
    /// The other run asked none of the questions, or with another prompt.
    pub fn compare(
        &mut self,
        (header, outcomes): (&EvaluationHeader, &[Outcome]),
        (other, baseline): (&EvaluationHeader, &[Outcome]),
    ) -> Result<(), Error> {
        let others: HashMap<(&str, usize), &Outcome> =
            baseline.iter().map(|outcome| ((outcome.subject.as_str(), outcome.question), outcome)).collect();
        let pairs: Vec<(&Outcome, &Outcome)> = outcomes
            .iter()
            .filter_map(|here| others.get(&(here.subject.as_str(), here.question)).map(|&other| (here, other)))
            .collect();
        if pairs.is_empty() || pairs.iter().any(|(here, other)| here.prompt != other.prompt) {
            return Err(Error::OtherQuestions);
        }
        let count = |here_right: bool, other_right: bool| {
            pairs.iter().filter(|(here, other)| here.correct == here_right && other.correct == other_right).count()
                as u64
        };
        let (only_here, only_baseline) = (count(true, false), count(false, true));
        self.comparison = Some(ComparisonReport {
            baseline_routing: other.routing.clone(),
            baseline_routing_prompt: other.routing_prompt.clone(),
            other_differences: header.other_differences(other),
            questions: pairs.len(),
            only_here,
            only_baseline,
            accuracy_difference: (only_here as f64 - only_baseline as f64) / pairs.len() as f64,
            accuracy_difference_interval: paired_difference(
                count(true, true),
                only_here,
                only_baseline,
                count(false, false),
            ),
            mcnemar_p: mcnemar(only_here, only_baseline),
        });
        Ok(())
    }
}

fn per_subject(outcomes: &[Outcome]) -> Vec<SubjectReport> {
    let mut reports: Vec<SubjectReport> = Vec::new();
    for outcome in outcomes {
        let at = reports.iter().position(|report| report.subject == outcome.subject).unwrap_or_else(|| {
            reports.push(SubjectReport { subject: outcome.subject.clone(), questions: 0, correct: 0, accuracy: 0.0 });
            reports.len() - 1
        });
        reports[at].questions += 1;
        reports[at].correct += usize::from(outcome.correct);
    }
    reports.iter_mut().for_each(|report| report.accuracy = share(report.correct, report.questions));
    reports
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
