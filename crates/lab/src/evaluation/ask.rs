//! Asks the questions of a task in one session, subject by subject.
//!
//! Tokens are the harness's: context and continuation are tokenised together, the continuation is what goes beyond the context's own
//! tokens, nothing is put in front. What does not fit the context length is cut from the left, and then runs in a session of its own, since it
//! no longer begins as the subject does.

use super::generated::{self, Judge};
use super::results::{Outcome, OutcomeAnswer};
use super::task::{Expected, Question, Subject, Task};
use crate::Error;
use crate::likelihood::negative_log_likelihood;
use moce_engine::routing::{Counts, Phase};
use moce_engine::tokenizer::SpecialTokens;
use moce_engine::{GenerateOptions, Sampler, SamplerOptions, Session, Snapshot, Tokenizer, generate};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Asks all questions for which `wanted` gives true, and hands out each outcome; the over-long ones of a subject come after its
/// others. The session is cleared at every subject.
///
/// # Errors
/// The context is too short for an answer, a step fails, or `receive` breaks off.
pub fn evaluate(
    session: &mut Session,
    task: &Task,
    wanted: &dyn Fn(&Subject, &Question) -> bool,
    receive: &mut dyn FnMut(Outcome) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let judge = Judge::new();
    let engine = session.engine().clone();
    for subject in &task.subjects {
        let questions = subject.questions.iter().filter(|question| wanted(subject, question));
        let prompts = questions.map(|question| Prompt::new(engine.tokenizer(), engine.context(), subject, question));
        let (long, whole): (Vec<Prompt<'_>>, Vec<Prompt<'_>>) =
            prompts.collect::<Result<Vec<_>, _>>()?.into_iter().partition(|prompt| prompt.cut);
        let mut shared = None;
        for prompt in whole.iter().chain(&long) {
            let start = if prompt.cut {
                session.clear()?;
                session.snapshot()
            } else {
                match &shared {
                    Some(shared) => Snapshot::clone(shared),
                    None => {
                        session.clear()?;
                        let count = shared_tokens(&whole);
                        if count > 0 {
                            session.prompt(&prompt.context[..count])?;
                        }
                        shared.insert(session.snapshot()).clone()
                    }
                }
            };
            let outcome = prompt.ask(session, &start, subject, &judge)?;
            if receive(outcome)?.is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    Ok(())
}

/// Tokens that all prompts begin with, and at least one less than the shortest has.
fn shared_tokens(prompts: &[Prompt<'_>]) -> usize {
    let Some((first, others)) = prompts.split_first() else { return 0 };
    let shared = |other: &Prompt<'_>| first.context.iter().zip(&other.context).take_while(|(a, b)| a == b).count();
    let shared = others.iter().map(shared).min().unwrap_or(usize::MAX);
    let shortest = prompts.iter().map(|prompt| prompt.context.len()).min().unwrap_or(0);
    shared.min(shortest.saturating_sub(1))
}

/// A question in tokens.
struct Prompt<'q> {
    question: &'q Question,
    /// What stands before the answer; already cut where an answer is generated.
    context: Vec<u32>,
    /// The tokens of each continuation.
    continuations: Vec<Vec<u32>>,
    /// Whether it does not fit.
    cut: bool,
}

impl<'q> Prompt<'q> {
    fn new(
        tokenizer: &Tokenizer,
        context_length: usize,
        subject: &Subject,
        question: &'q Question,
    ) -> Result<Prompt<'q>, Error> {
        let text = format!("{}{}", subject.prefix, question.text);
        let mut context = tokenizer.encode(&text, SpecialTokens::Parse)?;
        match &question.expected {
            Expected::Choice { continuations, .. } => {
                let tokens = continuations.iter().map(|continuation| {
                    let whole = tokenizer.encode(&(text.clone() + continuation), SpecialTokens::Parse)?;
                    Ok(whole[context.len().min(whole.len())..].to_vec())
                });
                let continuations = tokens.collect::<Result<Vec<_>, Error>>()?;
                // All of the continuation but its last token is input too.
                let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
                if continuations.iter().any(Vec::is_empty) || longest > context_length {
                    return Err(Error::NoContinuation { subject: subject.name.clone(), question: question.index });
                }
                let cut = context.len() + longest > context_length + 1;
                Ok(Prompt { question, context, continuations, cut })
            }
            Expected::Number { .. } => {
                let most = context_length.saturating_sub(generated::ANSWER_TOKENS);
                if most == 0 {
                    return Err(Error::ContextTooShort { context: context_length, answer: generated::ANSWER_TOKENS });
                }
                let cut = context.len() > most;
                context.drain(..context.len().saturating_sub(most));
                Ok(Prompt { question, context, continuations: Vec::new(), cut })
            }
        }
    }

    /// Asks, from `start` on, which stands after the first tokens of the context.
    fn ask(&self, session: &mut Session, start: &Snapshot, subject: &Subject, judge: &Judge) -> Result<Outcome, Error> {
        session.go_back(start)?;
        let mut cost = Cost { counts: total(session) };
        let (correct, answer) = match &self.question.expected {
            Expected::Choice { right, .. } => {
                let log_likelihoods = self.score(session, start, &mut cost)?;
                let choice = highest(&log_likelihoods);
                (choice == *right, OutcomeAnswer::Choice { choice, right: *right, log_likelihoods })
            }
            Expected::Number { answer } => {
                let text = cost.of(session, |session| {
                    let rest = &self.context[session.position()..];
                    generate_answer(session, rest)
                })?;
                let verdict = judge.judge(&text, answer);
                (verdict.strict, OutcomeAnswer::Text { text, strict: verdict.strict, flexible: verdict.flexible })
            }
        };
        Ok(Outcome {
            subject: subject.name.clone(),
            question: self.question.index,
            prompt: subject.fingerprint(self.question),
            prompt_tokens: self.context.len(),
            cut: self.cut,
            correct,
            answer,
            selections: cost.counts.own_selections,
            misses: cost.counts.misses,
            changed: cost.counts.changed,
            layer_tokens: cost.counts.tokens,
        })
    }

    /// Log likelihoods of the continuations: the context once, then what a continuation has beyond its first token. A cut context runs again for
    /// a continuation of another length, which leaves it more or fewer tokens.
    fn score(&self, session: &mut Session, start: &Snapshot, cost: &mut Cost) -> Result<Vec<f64>, Error> {
        let engine = Arc::clone(session.engine());
        let mut after_context: Option<(usize, Snapshot)> = None;
        let mut log_likelihoods = Vec::with_capacity(self.continuations.len());
        for continuation in &self.continuations {
            // All of the continuation but its last token is input too.
            let room = engine.context() + 1 - continuation.len();
            let context = &self.context[self.context.len().saturating_sub(room)..];
            match &after_context {
                Some((length, snapshot)) if *length == context.len() => session.go_back(snapshot)?,
                _ => {
                    session.go_back(start)?;
                    cost.of(session, |session| Ok(session.prompt(&context[session.position()..])?))?;
                    after_context = Some((context.len(), session.snapshot()));
                }
            }
            let (&first, rest) = continuation.split_first().expect("empty ones are refused");
            let mut nll = negative_log_likelihood(engine.cpu(), session.logits(), first);
            if !rest.is_empty() {
                let input = &continuation[..rest.len()];
                cost.of(session, |session| {
                    Ok(session.score(input, &mut |index, logits| {
                        nll += negative_log_likelihood(engine.cpu(), logits, rest[index])
                    })?)
                })?;
            }
            log_likelihoods.push(-nll);
        }
        Ok(log_likelihoods)
    }
}

/// Greedy, until a stop text, an end token or the most tokens.
fn generate_answer(session: &mut Session, prompt: &[u32]) -> Result<String, Error> {
    let options = GenerateOptions {
        max_tokens: generated::ANSWER_TOKENS,
        stop: generated::STOP.map(str::to_owned).to_vec(),
        ignore_end: false,
        pace: None,
    };
    let greedy = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(greedy, session.engine().hyperparameters().vocabulary)?;
    let generation = generate(session, &mut sampler, prompt, &options, &mut |_| ControlFlow::Continue(()))?;
    Ok(generation.text)
}

/// The index of the highest; the lowest such index.
fn highest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, index| if values[index] > values[best] { index } else { best })
}

/// What a question cost, the shared beginning included, as if it were asked alone: so it does not depend on how much is shared.
struct Cost {
    counts: Counts,
}

impl Cost {
    /// Adds what a piece of work counts.
    fn of<T>(
        &mut self,
        session: &mut Session,
        work: impl FnOnce(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let before = total(session);
        let result = work(session)?;
        self.counts += total(session) - before;
        Ok(result)
    }
}

/// All that was counted since the session was cleared.
fn total(session: &Session) -> Counts {
    let mut total = session.routing().total(Phase::Prompt);
    total += session.routing().total(Phase::Generation);
    total
}
