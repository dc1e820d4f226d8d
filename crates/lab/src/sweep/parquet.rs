//! The results of a sweep as Parquet: the columns of `results.json`, intervals as two each.

use super::CellSummary;
use crate::Error;
use crate::parquet::{Column, Table};
use crate::statistics::Interval;

const LOW: fn(Interval) -> f64 = |interval| interval.low;
const HIGH: fn(Interval) -> f64 = |interval| interval.high;

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
        ("perplexity_rise_low", number(|row| row.perplexity_rise_interval.map(LOW))),
        ("perplexity_rise_high", number(|row| row.perplexity_rise_interval.map(HIGH))),
        ("kl_mean", number(|row| row.kl_mean)),
        ("kl_low", number(|row| row.kl_interval.map(LOW))),
        ("kl_high", number(|row| row.kl_interval.map(HIGH))),
        ("top1_agreement", number(|row| row.top1_agreement)),
        ("top1_agreement_low", number(|row| row.top1_agreement_interval.map(LOW))),
        ("top1_agreement_high", number(|row| row.top1_agreement_interval.map(HIGH))),
        ("miss_rate", number(|row| Some(row.miss_rate))),
        ("misses_per_token", number(|row| Some(row.misses_per_token))),
        ("logical_bytes_per_token", number(|row| Some(row.logical_bytes_per_token))),
        ("changed_share", number(|row| Some(row.changed_share))),
        ("top_j_kept", number(|row| row.top_j_kept)),
        ("lifetime_mean", number(|row| Some(row.lifetime_mean))),
        (
            "lifetimes_still_cached",
            Column::Integer(rows.iter().map(|row| row.lifetimes_still_cached.map(|stays| stays as i64)).collect()),
        ),
        ("tokens_per_second", number(|row| row.tokens_per_second)),
        ("on_front", Column::Boolean(rows.iter().map(|row| Some(row.on_front)).collect())),
    ]
    .into_iter()
    .unzip();
    let mut file = Vec::new();
    let mut table = Table::create(&mut file, &names, &columns)?;
    table.write(&columns)?;
    table.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    use serde_json::Value;

    #[test]
    fn parquet_has_the_columns_of_the_json() {
        let row = CellSummary {
            name: "50p_lru_balanced".to_owned(),
            routing: "cache-prior:lambda=0.1".to_owned(),
            eviction: "lru".to_owned(),
            capacity: "50%".to_owned(),
            tokens: 1024,
            windows: 16,
            perplexity: 20.5,
            perplexity_rise: Some(0.01),
            perplexity_rise_interval: Some(Interval { low: 0.005, high: 0.015 }),
            kl_mean: Some(0.02),
            kl_interval: Some(Interval { low: 0.01, high: 0.03 }),
            top1_agreement: None,
            top1_agreement_interval: None,
            miss_rate: 0.25,
            misses_per_token: 30.0,
            logical_bytes_per_token: 1e6,
            changed_share: 0.125,
            top_j_kept: Some(1.0),
            lifetime_mean: 40.0,
            lifetimes_still_cached: Some(60),
            tokens_per_second: None,
            on_front: true,
        };
        let mut expected = serde_json::to_value(&row).unwrap();
        let fields = expected.as_object_mut().unwrap();
        for name in ["perplexity_rise", "kl", "top1_agreement"] {
            let interval = fields.remove(&format!("{name}_interval")).unwrap();
            fields.insert(format!("{name}_low"), interval["low"].clone());
            fields.insert(format!("{name}_high"), interval["high"].clone());
        }
        let file = SerializedFileReader::new(bytes::Bytes::from(table(&[row]).unwrap())).unwrap();
        let row = file.get_row_iter(None).unwrap().next().unwrap().unwrap();
        let value = |field: &Field| match field {
            Field::Null => Value::Null,
            Field::Bool(value) => (*value).into(),
            Field::Long(value) => (*value).into(),
            Field::Double(value) => (*value).into(),
            Field::Str(value) => value.clone().into(),
            other => panic!("{other}"),
        };
        let found: Value = row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect();
        assert_eq!(found, expected);
    }
}
