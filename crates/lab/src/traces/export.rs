//! A trace as a table: one row for each chosen expert, or for each expert of each layer with its score.

use crate::Error;
use moce_engine::routing::{Phase, TraceReader, TraceToken};
use std::io::{Read, Write};

/// The columns. `token`: from 0; `id`: the token's, empty if unknown; `phase`: prompt or generation; `starts`: what begins with the token,
/// sequence or window, else empty; `layer`: among the MoE layers, from 0; `rank`: 0 for the strongest choice, empty where the expert was
/// not chosen; `score`: empty in a trace without scores.
pub const CSV_COLUMNS: &str = "token,id,phase,starts,layer,expert,rank,score";

/// Writes a table with a line of column names. `all`: experts that were not chosen have rows as well. Gives the number of rows.
///
/// # Errors
/// The trace is damaged, or the output cannot be written.
pub fn export_csv<R: Read>(mut reader: TraceReader<R>, all: bool, output: &mut impl Write) -> Result<u64, Error> {
    let (layers, experts) = (reader.header().layers.len(), reader.header().experts);
    writeln!(output, "{CSV_COLUMNS}")?;
    let (mut index, mut rows) = (0_u64, 0);
    while let Some(token) = reader.next_token()? {
        let begin = beginning(index, token);
        for layer in 0..layers {
            let scores = token.scores(layer);
            let mut row = |expert: u32, rank: Option<usize>| -> std::io::Result<()> {
                rows += 1;
                write!(output, "{begin},{layer},{expert},")?;
                if let Some(rank) = rank {
                    write!(output, "{rank}")?;
                }
                match scores.get(expert as usize) {
                    // The shortest text that reads back as the same number.
                    Some(score) => writeln!(output, ",{score}"),
                    None => writeln!(output, ","),
                }
            };
            if all {
                let rank = |expert| token.selection(layer).position(|chosen| chosen == expert);
                (0..experts as u32).try_for_each(|expert| row(expert, rank(expert)))?;
            } else {
                token.selection(layer).enumerate().try_for_each(|(rank, expert)| row(expert, Some(rank)))?;
            }
        }
        index += 1;
    }
    output.flush()?;
    Ok(rows)
}

/// What every row of a token begins with.
fn beginning(index: u64, token: &TraceToken) -> String {
    let id = token.id.map(|id| id.to_string()).unwrap_or_default();
    let phase = match token.phase {
        Phase::Prompt => "prompt",
        Phase::Generation => "generation",
    };
    let starts = match (token.starts_sequence, token.starts_window) {
        (true, _) => "sequence",
        (false, true) => "window",
        (false, false) => "",
    };
    format!("{index},{id},{phase},{starts}")
}
