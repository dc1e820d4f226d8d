//! Runs a text through a session, so that whoever observes it sees every choice.

use crate::Error;
use moce_engine::Session;
use std::ops::ControlFlow;

/// Runs `tokens` as prompt tokens in windows of at most `window`, each a text of its own, as perplexity runs them (without its last, partial
/// one). `progress` is called after each window with (tokens run, tokens in all)
/// and may end it.
///
/// # Errors
/// A window does not fit the context, or a step fails.
pub fn record_text(
    session: &mut Session,
    tokens: &[u32],
    window: usize,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<(), Error> {
    let mut done = 0;
    for tokens_of_window in tokens.chunks(window.max(1)) {
        session.restart();
        session.prompt(tokens_of_window)?;
        done += tokens_of_window.len();
        if progress(done, tokens.len()).is_break() {
            break;
        }
    }
    Ok(())
}
