//! The results of a sweep as Parquet: the columns of `results.json`.

use super::CellSummary;
use crate::Error;
use crate::parquet::{Column, Table};

/// A Parquet file with a row for each cell.
pub(super) fn table(rows: &[CellSummary]) -> Result<Vec<u8>, Error> {
    let text = |of: fn(&CellSummary) -> &str| Column::Text(rows.iter().map(|row| Some(of(row).to_owned())).collect());
    let number = |of: fn(&CellSummary) -> Option<f64>| Column::Double(rows.iter().map(of).collect());
    let integer = |of: fn(&CellSummary) -> i64| Column::Integer(rows.iter().map(|row| Some(of(row))).collect());
    let (names, columns): (Vec<&str>, Vec<Column>) = [
        ("name", text(|row| &row.name)),
        ("routing", text(|row| &row.routing)),
        ("eviction", text(|row| &row.eviction)),
        ("capacity", text(|row| &row.capacity)),
        ("tokens", integer(|row| row.tokens as i64)),
        ("perplexity", number(|row| Some(row.perplexity))),
        ("perplexity_rise", number(|row| row.perplexity_rise)),
        ("perplexity_rise_low", number(|row| row.perplexity_rise_interval.map(|interval| interval.low))),
        ("perplexity_rise_high", number(|row| row.perplexity_rise_interval.map(|interval| interval.high))),
        ("kl_mean", number(|row| row.kl_mean)),
        ("top1_agreement", number(|row| row.top1_agreement)),
        ("miss_rate", number(|row| Some(row.miss_rate))),
        ("misses_per_token", number(|row| Some(row.misses_per_token))),
        ("logical_bytes_per_token", number(|row| Some(row.logical_bytes_per_token))),
        ("changed_share", number(|row| Some(row.changed_share))),
        ("lifetime_mean", number(|row| Some(row.lifetime_mean))),
        ("tokens_per_second", number(|row| row.tokens_per_second)),
    ]
    .into_iter()
    .unzip();
    let mut file = Vec::new();
    let mut table = Table::create(&mut file, &names, &columns)?;
    table.write(&columns)?;
    table.finish()?;
    Ok(file)
}
