//! A trace as a table: one row for each chosen expert, or for each expert of each layer with its score.

use crate::Error;
use moce_engine::routing::{Phase, TextStart, TraceReader};
use std::fmt::{Display, Formatter};
use std::io::{Read, Write};

/// The columns. `token`: from 0; `id`: the token's, empty if unknown; `phase`: prompt or generation; `starts`: what begins with the token,
/// sequence or window, else empty; `layer`: among the MoE layers, from 0; `rank`: 0 for the strongest choice, empty where the expert was
/// not chosen; `score`: empty in a trace without scores.
pub const TRACE_COLUMNS: [&str; 8] = ["token", "id", "phase", "starts", "layer", "expert", "rank", "score"];

/// One row.
pub(super) struct Row {
    pub(super) token: u64,
    pub(super) id: Option<u32>,
    pub(super) phase: &'static str,
    pub(super) starts: Option<&'static str>,
    pub(super) layer: usize,
    pub(super) expert: u32,
    pub(super) rank: Option<usize>,
    pub(super) score: Option<f32>,
}

/// Calls `write` with every row. `all`: experts that were not chosen have rows as well. Gives the number of rows.
pub(super) fn each_row<R: Read>(
    mut reader: TraceReader<R>,
    all: bool,
    write: &mut dyn FnMut(Row) -> Result<(), Error>,
) -> Result<u64, Error> {
    let (layers, experts) = (reader.header().layers.len(), reader.header().experts);
    let (mut index, mut rows) = (0, 0);
    while let Some(token) = reader.next_token()? {
        let phase = match token.phase {
            Phase::Prompt => "prompt",
            Phase::Generation => "generation",
        };
        let starts = token.start.map(|start| match start {
            TextStart::Sequence => "sequence",
            TextStart::Window => "window",
        });
        for layer in 0..layers {
            let scores = token.scores(layer);
            let mut row = |expert: u32, rank: Option<usize>| {
                rows += 1;
                let score = scores.get(expert as usize).copied();
                write(Row { token: index, id: token.id, phase, starts, layer, expert, rank, score })
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
    Ok(rows)
}

/// Writes a table with a line of column names. `all`: experts that were not chosen have rows as well. Gives the number of rows.
///
/// # Errors
/// The trace is damaged, or the output cannot be written.
pub fn export_csv<R: Read>(reader: TraceReader<R>, all: bool, output: &mut impl Write) -> Result<u64, Error> {
    writeln!(output, "{}", TRACE_COLUMNS.join(","))?;
    let rows = each_row(reader, all, &mut |row| {
        let Row { token, phase, layer, expert, .. } = row;
        // Of a score the shortest text that reads back as the same number.
        let (id, starts, rank, score) = (OrEmpty(row.id), OrEmpty(row.starts), OrEmpty(row.rank), OrEmpty(row.score));
        Ok(writeln!(output, "{token},{id},{phase},{starts},{layer},{expert},{rank},{score}")?)
    })?;
    output.flush()?;
    Ok(rows)
}

struct OrEmpty<T>(Option<T>);

impl<T: Display> Display for OrEmpty<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map_or(Ok(()), |value| value.fmt(f))
    }
}
