//! A trace as Parquet: the same table, column by column.

use super::export::{Row, TRACE_COLUMNS, each_row};
use crate::Error;
use crate::parquet::{Column, Table};
use moce_engine::routing::TraceReader;
use std::io::{Read, Write};

/// Rows that are gathered before they are written.
const GROUP_ROWS: usize = 1 << 17;

/// Writes a Parquet file with the columns [`TRACE_COLUMNS`]; what is empty in CSV is null. `all`: experts that were not chosen have rows as
/// well. Gives the number of rows.
///
/// # Errors
/// The trace is damaged, or the output cannot be written.
pub fn export_parquet<R: Read, W: Write + Send>(
    reader: TraceReader<R>,
    all: bool,
    output: &mut W,
) -> Result<u64, Error> {
    let mut group = Group::default();
    let mut table = Table::create(output, &TRACE_COLUMNS, &Group::default().take())?;
    let rows = each_row(reader, all, &mut |row| {
        group.push(&row);
        if group.token.len() < GROUP_ROWS { Ok(()) } else { table.write(&group.take()) }
    })?;
    if !group.token.is_empty() {
        table.write(&group.take())?;
    }
    table.finish()?;
    Ok(rows)
}

/// Rows that wait, in the order of [`TRACE_COLUMNS`].
#[derive(Default)]
struct Group {
    token: Vec<Option<i64>>,
    id: Vec<Option<i64>>,
    phase: Vec<Option<String>>,
    starts: Vec<Option<String>>,
    layer: Vec<Option<i64>>,
    expert: Vec<Option<i64>>,
    rank: Vec<Option<i64>>,
    score: Vec<Option<f32>>,
}

impl Group {
    fn push(&mut self, row: &Row) {
        self.token.push(Some(row.token as i64));
        self.id.push(row.id.map(i64::from));
        self.phase.push(Some(row.phase.to_owned()));
        self.starts.push(row.starts.map(str::to_owned));
        self.layer.push(Some(row.layer as i64));
        self.expert.push(Some(i64::from(row.expert)));
        self.rank.push(row.rank.map(|rank| rank as i64));
        self.score.push(row.score);
    }

    /// The columns, leaving none.
    fn take(&mut self) -> [Column; TRACE_COLUMNS.len()] {
        let Group { token, id, phase, starts, layer, expert, rank, score } = std::mem::take(self);
        [
            Column::Integer(token),
            Column::Integer(id),
            Column::Text(phase),
            Column::Text(starts),
            Column::Integer(layer),
            Column::Integer(expert),
            Column::Integer(rank),
            Column::Single(score),
        ]
    }
}
