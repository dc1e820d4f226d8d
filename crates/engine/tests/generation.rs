//! Generation from a prompt of several chunks: what the receiver is told, and how it ends a prompt. On the demo model.

#![allow(clippy::unwrap_used)] // clippy sees tests only in functions marked as such, not in their helpers

use moce_engine::{
    CpuOptions, Engine, EngineOptions, Error, GenerateOptions, Generation, Piece, Sampler, SamplerOptions, Session,
    StopReason, generate,
};
use moce_testkit::demo_model;
use std::ops::ControlFlow;
use std::sync::Arc;

const CHUNK: usize = 8;
const PROMPT: &str = "Once upon a time there was a small engine that read its experts from flash, one by one.";

fn open() -> (Session, Vec<u32>) {
    let options = EngineOptions {
        cpu: CpuOptions { threads: Some(2), ..CpuOptions::default() },
        context: Some(64),
        chunk: Some(CHUNK),
        ..EngineOptions::default()
    };
    let engine = Arc::new(Engine::open(&demo_model(), &options).unwrap());
    let prompt = engine.tokenizer().encode_prompt(PROMPT).unwrap();
    assert!(prompt.len() > 2 * CHUNK);
    (Session::new(&engine).unwrap(), prompt)
}

/// Generates four tokens greedily.
fn greedily(
    session: &mut Session,
    prompt: &[u32],
    stop: Vec<String>,
    receive: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
) -> Generation {
    let greedy = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
    let mut sampler = Sampler::new(greedy, session.engine().hyperparameters().vocabulary).unwrap();
    let options = GenerateOptions { max_tokens: 4, stop, ..GenerateOptions::default() };
    generate(session, &mut sampler, prompt, &options, receive).unwrap()
}

/// Generates until `most` pieces have come; `pieces` gets (prompt tokens left, tokens that the piece cost).
fn run(session: &mut Session, prompt: &[u32], most: usize, pieces: &mut Vec<(usize, usize)>) -> Generation {
    greedily(session, prompt, Vec::new(), &mut |piece| {
        pieces.push((piece.prompt_left, piece.cost.tokens));
        assert!(piece.prompt_left == 0 || piece.text.is_empty());
        if pieces.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
}

#[test]
fn a_long_prompt_says_how_far_it_is_and_can_be_broken_off() -> Result<(), Error> {
    let (mut session, prompt) = open();
    let mut pieces = Vec::new();
    let whole = run(&mut session, &prompt, usize::MAX, &mut pieces);
    let chunks = prompt.len().div_ceil(CHUNK);
    let expected: Vec<_> = (1..chunks).map(|chunk| (prompt.len() - chunk * CHUNK, CHUNK)).collect();
    assert_eq!(pieces[..chunks - 1], expected);
    assert!(pieces[chunks - 1..].iter().all(|&(left, _)| left == 0));
    assert_eq!((whole.prompt.tokens, whole.token_ids.len()), (prompt.len(), 4));

    session.clear()?;
    pieces.clear();
    let broken = run(&mut session, &prompt, 1, &mut pieces);
    assert_eq!((broken.stop_reason, broken.prompt.tokens), (StopReason::Cancelled, CHUNK));
    assert!(broken.text.is_empty() && broken.token_ids.is_empty());
    assert_eq!(session.position(), CHUNK);
    // The session goes on where it was.
    session.prompt(&prompt[CHUNK..])?;
    let logits = session.logits().to_vec();
    session.clear()?;
    session.prompt(&prompt)?;
    assert_eq!(session.logits(), logits);
    Ok(())
}

/// As with tokens that are no text, which a model may give without an end: here all of it could be the beginning of a stop text.
#[test]
fn a_generation_that_gives_no_text_can_be_broken_off() -> Result<(), Error> {
    let (mut session, prompt) = open();
    let text = run(&mut session, &prompt, usize::MAX, &mut Vec::new()).text;
    session.clear()?;
    let mut asked = 0;
    let broken = greedily(&mut session, &prompt, vec![format!("{text} and so on")], &mut |piece| {
        asked += usize::from(piece.prompt_left == 0);
        assert_eq!((piece.text, piece.cost.tokens > 0), ("", piece.prompt_left > 0));
        if asked < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert_eq!((broken.stop_reason, broken.token_ids.len()), (StopReason::Cancelled, 2));
    Ok(())
}
