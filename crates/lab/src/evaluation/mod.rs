//! Accuracy on questions, asked and judged as EleutherAI's lm-evaluation-harness (0.4.13) does: the same prompts, token by token, the
//! same cutting of over-long ones, the same rules for what is right. GSM8K's examples, which the harness draws, are the first of their file.
//!
//! ```text
//! files --rows--> rows --source--> Task (subjects of questions) --evaluate--> Outcome a question --results--> file
//!                                                                                               --summary--> report
//! ```
//!
//! The questions of a subject share the beginning of their prompts. It is run once, and every question goes on from its snapshot of KV cache
//! and policy state (METHOD.md, "Figures"); so what a question gives does not depend on which others were asked.

mod ask;
mod generated;
mod multiple_choice;
mod results;
mod rows;
mod source;
mod summary;
mod task;

pub use ask::evaluate;
pub use results::{EvaluationHeader, Outcome, OutcomeAnswer, ResultFile, read_results};
pub use source::{Shots, TaskSource};
pub use summary::{ComparisonReport, EvaluationReport, SubjectReport};
pub use task::{Expected, Question, Subject, Task};
