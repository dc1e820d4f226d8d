//! Generation: prompt in, text out piece by piece, until something ends it.

use crate::pace::{Pace, PaceKeeper, PaceReport};
use crate::tokenizer::Decoder;
use crate::{Error, Sampler, Session, Traffic};
use moce_routing::{Counts, Phase};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// When a generation ends.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Most tokens generated.
    pub max_tokens: usize,
    /// Ends before any of these texts; it is not part of the answer.
    pub stop: Vec<String>,
    /// Goes on past the model's end tokens.
    pub ignore_end: bool,
    /// Moves the routing policy of generated tokens to hold a speed; the policy that it leaves stays with the session.
    pub pace: Option<Pace>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model gave one of its end tokens.
    EndToken,
    /// As many tokens as were asked for.
    MaxTokens,
    /// One of the stop texts came up.
    StopText,
    /// The session's context is full.
    ContextFull,
    /// The caller said so.
    Cancelled,
}

impl StopReason {
    /// The name in JSON output.
    pub const fn name(self) -> &'static str {
        match self {
            StopReason::EndToken => "end_token",
            StopReason::MaxTokens => "max_tokens",
            StopReason::StopText => "stop_text",
            StopReason::ContextFull => "context_full",
            StopReason::Cancelled => "cancelled",
        }
    }
}

/// Tokens run, the time that took, and what their experts cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct PhaseReport {
    /// Tokens run through the model.
    pub tokens: usize,
    /// Wall time, sampling included.
    pub time: Duration,
    /// Choices and misses of the session's logical cache.
    pub counts: Counts,
    /// Bytes of the experts that it missed, each time.
    pub logical_bytes: u64,
    /// What was read from flash, for this session or another that ran meanwhile.
    pub traffic: Traffic,
}

impl PhaseReport {
    /// Tokens per second; 0 where nothing ran.
    pub fn tokens_per_second(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.tokens as f64 / self.time.as_secs_f64() }
    }
}

/// A piece of the answer, as it is made.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Piece<'a> {
    /// Whole characters, never a part of a stop text. Empty while the prompt is run, after tokens that complete no text, and perhaps
    /// at the end.
    pub text: &'a str,
    /// What the tokens since the last piece cost, all of one phase (the first generated one's is part of the prompt). Generated tokens that
    /// complete no text count with the next piece that has some.
    pub cost: PhaseReport,
    /// Tokens of the prompt that are still to be run. A prompt of several chunks gives a piece after each of them but the last.
    pub prompt_left: usize,
}

/// A finished generation.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The answer, without the prompt and without what ended it.
    pub text: String,
    /// The tokens generated, an end token included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// The prompt.
    pub prompt: PhaseReport,
    /// The tokens after it. The first one comes from the prompt's logits, so one token less than generated is run.
    pub generation: PhaseReport,
    /// How far routing went to hold the wanted speed, where one was wanted.
    pub pace: Option<PaceReport>,
}

/// Runs `prompt` through the session and generates from there. `receive` gets the text as it is made, and says whether to go on; it is
/// called after every token.
///
/// # Errors
/// The prompt does not fit the context, or a step fails.
pub fn generate(
    session: &mut Session,
    sampler: &mut Sampler,
    prompt: &[u32],
    options: &GenerateOptions,
    receive: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    let engine = session.engine().clone();
    let before = Meter::read(session);
    let mut last = (before, 0);
    let flow = session.prompt_while(prompt, &mut |session, prompt_left| {
        let now = (Meter::read(session), prompt.len() - prompt_left);
        let cost = now.0.since(&last.0, Phase::Prompt, now.1 - last.1);
        last = now;
        receive(Piece { text: "", cost, prompt_left })
    })?;
    let between = Meter::read(session);
    if flow.is_break() {
        return Ok(Generation {
            text: String::new(),
            token_ids: Vec::new(),
            stop_reason: StopReason::Cancelled,
            prompt: between.since(&before, Phase::Prompt, last.1),
            generation: PhaseReport::default(),
            pace: None,
        });
    }
    prompt.iter().for_each(|&token| sampler.accept(token));

    let mut keeper = options.pace.clone().map(PaceKeeper::new);
    if let Some(keeper) = &keeper {
        session.set_policy(keeper.policy())?;
    }
    let mut decoder = engine.tokenizer().decoder();
    let mut output = Output { text: String::new(), sent: 0, stop: &options.stop };
    let mut token_ids = Vec::new();
    let mut run = 0;
    let mut last = (Meter::read(session), run);
    let stop_reason = loop {
        if token_ids.len() == options.max_tokens {
            break StopReason::MaxTokens;
        }
        let token = sampler.sample(session.logits());
        sampler.accept(token);
        token_ids.push(token);
        if !options.ignore_end && engine.tokenizer().is_end(token) {
            break StopReason::EndToken;
        }
        decoder.push(token, &mut output.text);
        if output.find_stop() {
            break StopReason::StopText;
        }
        let text = output.next();
        let cost = if text.is_empty() {
            PhaseReport::default()
        } else {
            let now = (Meter::read(session), run);
            let cost = now.0.since(&last.0, Phase::Generation, now.1 - last.1);
            last = now;
            cost
        };
        // Also without text: only the receiver can end a generation that gives none.
        if receive(Piece { text, cost, prompt_left: 0 }).is_break() {
            break StopReason::Cancelled;
        }
        if token_ids.len() == options.max_tokens {
            break StopReason::MaxTokens;
        }
        if session.remaining() == 0 {
            break StopReason::ContextFull;
        }
        session.decode(token)?;
        run += 1;
        if let Some(policy) = keeper.as_mut().and_then(PaceKeeper::token) {
            session.set_policy(policy)?;
        }
    };
    let rest = output.finish(decoder, stop_reason);
    if stop_reason != StopReason::Cancelled {
        let cost = Meter::read(session).since(&last.0, Phase::Generation, run - last.1);
        // The text is complete: whether the receiver wants more no longer matters.
        let _ = receive(Piece { text: rest, cost, prompt_left: 0 });
    }
    Ok(Generation {
        text: output.text,
        token_ids,
        stop_reason,
        prompt: between.since(&before, Phase::Prompt, prompt.len()),
        generation: Meter::read(session).since(&between, Phase::Generation, run),
        pace: keeper.as_ref().map(PaceKeeper::report),
    })
}

/// Time and counters at one moment.
#[derive(Clone, Copy)]
struct Meter {
    time: Instant,
    prompt: Routed,
    generation: Routed,
    traffic: Traffic,
}

/// What was counted of one phase.
#[derive(Clone, Copy)]
struct Routed {
    counts: Counts,
    logical_bytes: u64,
}

impl Routed {
    fn read(session: &Session, phase: Phase) -> Routed {
        let routing = session.routing();
        let bytes = session.engine().expert_bytes().iter().enumerate();
        let logical_bytes = bytes.map(|(layer, bytes)| routing.counts(layer, phase).misses * bytes).sum();
        Routed { counts: routing.total(phase), logical_bytes }
    }
}

impl Meter {
    fn read(session: &Session) -> Meter {
        Meter {
            time: Instant::now(),
            prompt: Routed::read(session, Phase::Prompt),
            generation: Routed::read(session, Phase::Generation),
            traffic: session.engine().traffic(),
        }
    }

    fn since(&self, earlier: &Meter, phase: Phase, tokens: usize) -> PhaseReport {
        let (now, before) = match phase {
            Phase::Prompt => (self.prompt, earlier.prompt),
            Phase::Generation => (self.generation, earlier.generation),
        };
        PhaseReport {
            tokens,
            time: self.time - earlier.time,
            counts: now.counts - before.counts,
            logical_bytes: now.logical_bytes - before.logical_bytes,
            traffic: self.traffic - earlier.traffic,
        }
    }
}

/// The answer so far, and how much of it has been handed out.
struct Output<'a> {
    text: String,
    sent: usize,
    stop: &'a [String],
}

impl Output<'_> {
    /// Cuts the text before the earliest stop text, if there is one.
    fn find_stop(&mut self) -> bool {
        // What has been sent holds no beginning of a stop text (see `send`), so the search starts there.
        let unsent = &self.text[self.sent..];
        let earliest =
            self.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| unsent.find(stop.as_str())).min();
        match earliest {
            Some(at) => {
                self.text.truncate(self.sent + at);
                true
            }
            None => false,
        }
    }

    /// What can be handed out, perhaps nothing: all but a tail that may turn out to be the beginning of a stop text.
    fn next(&mut self) -> &str {
        let unsent = &self.text[self.sent..];
        let held = self.stop.iter().map(|stop| overlap(unsent, stop)).max().unwrap_or(0);
        let end = self.text.len() - held;
        let start = std::mem::replace(&mut self.sent, end);
        &self.text[start..end]
    }

    /// What was held back, unless the text was cut.
    fn finish(&mut self, decoder: Decoder<'_>, reason: StopReason) -> &str {
        if reason != StopReason::StopText {
            decoder.finish(&mut self.text);
        }
        &self.text[self.sent..]
    }
}

/// Length of the longest end of `text` that is a proper beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(at, _)| at).skip(1);
    starts.filter(|&len| text.ends_with(&stop[..len])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds pieces and returns what was handed out before, and the text at the end.
    fn feed(pieces: &[&str], stop: &[&str]) -> (String, String, bool) {
        let stop: Vec<String> = stop.iter().map(|&s| s.to_owned()).collect();
        let mut output = Output { text: String::new(), sent: 0, stop: &stop };
        let mut sent = String::new();
        for piece in pieces {
            output.text.push_str(piece);
            if output.find_stop() {
                return (sent, output.text, true);
            }
            sent.push_str(output.next());
        }
        (sent, output.text, false)
    }

    #[test]
    fn a_stop_text_split_over_tokens_is_never_shown() {
        let (sent, text, stopped) = feed(&["one", " EN", "D of it"], &["END"]);
        assert_eq!((sent.as_str(), text.as_str(), stopped), ("one ", "one ", true));
    }

    #[test]
    fn a_held_beginning_comes_out_when_it_was_none() {
        let (sent, _, stopped) = feed(&["one", " EN", "OUGH"], &["END"]);
        assert_eq!((sent.as_str(), stopped), ("one ENOUGH", false));
    }

    #[test]
    fn the_earliest_of_several_stop_texts_counts() {
        let (_, text, stopped) = feed(&["a b c d"], &["c", "b"]);
        assert_eq!((text.as_str(), stopped), ("a ", true));
    }

    #[test]
    fn characters_of_several_bytes_are_held_whole() {
        let (sent, _, _) = feed(&["x é"], &["éé"]);
        assert_eq!(sent, "x ");
    }
}
