//! Plots of a sweep as SVG.

use super::store::CellResult;
use super::summary::CellSummary;
use crate::PerplexityReport;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::collections::BTreeMap;

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Perplexity rises above this are left out of plots: nobody would run such a model, and all else would be a line at the bottom.
const HIGHEST_RISE: f64 = 0.10;

/// Colours that people with any colour vision tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// What a Pareto plot has on its horizontal axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Across {
    MissRate,
    TokensPerSecond,
}

impl Across {
    fn title(self) -> &'static str {
        match self {
            Across::MissRate => "misses, % of the choices",
            Across::TokensPerSecond => "tokens/s by the timing model",
        }
    }

    fn of(self, row: &CellSummary) -> Option<f64> {
        match self {
            Across::MissRate => Some(100.0 * row.miss_rate),
            Across::TokensPerSecond => row.tokens_per_second,
        }
    }
}

/// Quality against misses or speed: one line for each policy, by its strength; the cells that none beats filled.
pub(super) fn pareto(rows: &[&CellSummary], across: Across) -> Option<String> {
    // An axis to infinity has no end of marks.
    let finite = |number: f64| Some(number).filter(|number| number.is_finite());
    let point = |row: &CellSummary| Some((finite(across.of(row)?)?, finite(100.0 * row.perplexity_rise?)?));
    let mut series: BTreeMap<String, Vec<(f64, f64, bool)>> = BTreeMap::new();
    for row in rows {
        let Some((x, y)) = point(row) else { continue };
        if y <= 100.0 * HIGHEST_RISE {
            series.entry(row.series()).or_default().push((x, y, row.on_front));
        }
    }
    let points = || series.values().flatten();
    let most = |part: fn(&(f64, f64, bool)) -> f64| points().map(part).fold(f64::NEG_INFINITY, f64::max);
    let least = points().map(|point| point.1).fold(0.0, f64::min);
    let (right, top) = (most(|point| point.0), most(|point| point.1));
    points().next()?;
    let margin = ((top - least) * 0.08).max(0.05);
    draw((720, 420), |area| {
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..right * 1.05 + 1e-9, least - margin..top + margin)?;
        let mesh = &mut chart.configure_mesh();
        mesh.x_desc(across.title()).y_desc("perplexity above the original, %").max_light_lines(0).draw()?;
        for (index, (name, points)) in series.iter_mut().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            chart.draw_series(LineSeries::new(points.iter().map(|&(x, y, _)| (x, y)), colour.stroke_width(1)))?;
            let dots = points.iter().map(|&(x, y, on_front)| {
                let style = if on_front { colour.filled() } else { colour.stroke_width(1) };
                Circle::new((x, y), 4, style)
            });
            chart
                .draw_series(dots)?
                .label(name.as_str())
                .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()
    })
}

/// Misses by layer as a share of tokens · K: a row for each cell, a column for each layer, dark where much is missed.
pub(super) fn heat_map(results: &[&CellResult]) -> Option<String> {
    let layers = results.first()?.report.per_layer.len();
    let share = |row: usize, layer: usize| {
        let PerplexityReport { per_layer, miss_rate, .. } = &results[row].report;
        let misses: u64 = per_layer.iter().map(|layer| layer.misses).sum();
        // The report's rate is of all layers together; policies that run fewer experts are measured by all choices, too.
        per_layer[layer].misses as f64 / misses.max(1) as f64 * miss_rate * layers as f64
    };
    let names: Vec<String> = results.iter().map(|result| result.report.routing.clone()).collect();
    matrix(&names, layers, "layer", share)
}

/// How often each expert is chosen: a row for each layer, its experts from the most to the least used.
pub(super) fn usage(result: &CellResult) -> Option<String> {
    let layers: Vec<Vec<f64>> = result
        .report
        .per_layer
        .iter()
        .map(|layer| {
            let mut usage: Vec<u64> = layer.usage.clone();
            usage.sort_by(|one, other| other.cmp(one));
            let total = usage.iter().sum::<u64>().max(1) as f64;
            usage.iter().map(|&count| count as f64 / total).collect()
        })
        .collect();
    let experts = layers.first()?.len();
    let most = layers.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
    let names: Vec<String> = (0..layers.len()).map(|layer| format!("layer {layer}")).collect();
    matrix(&names, experts, "experts of the layer, the most used first", |row, column| {
        layers[row].get(column).copied().unwrap_or(0.0) / most
    })
}

/// A matrix of shares from 0 (white) to 1 (dark blue).
fn matrix(names: &[String], columns: usize, across: &str, share: impl Fn(usize, usize) -> f64) -> Option<String> {
    const ROW: u32 = 16;
    const NAMES: u32 = 220;
    let rows = names.len();
    if rows == 0 || columns == 0 {
        return None;
    }
    let height = rows as u32 * ROW + 52;
    draw((720, height), |area| {
        let name = |row: &f64| names.get((rows as f64 - 0.5 - row).round() as usize).cloned().unwrap_or_default();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(NAMES)
            .build_cartesian_2d(0.0..columns as f64, 0.0..rows as f64)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc(across)
            .axis_desc_style(("sans-serif", 13))
            .label_style(("sans-serif", 12))
            // Whole numbers alone.
            .x_labels(columns.min(10))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_labels(0)
            .draw()?;
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        chart.draw_series(places.map(|(row, column)| {
            let (x, y) = (column as f64, (rows - 1 - row) as f64);
            let strength = share(row, column).clamp(0.0, 1.0);
            Rectangle::new([(x, y), (x + 1.0, y + 1.0)], COLOURS[0].mix(strength).filled())
        }))?;
        let style = ("sans-serif", 11).into_font();
        for row in 0..rows {
            let text = name(&(rows as f64 - 0.5 - row as f64));
            let at = (4, 8 + row as i32 * ROW as i32 + 2);
            area.draw(&Text::new(text, at, style.clone()))?;
        }
        Ok(())
    })
}

/// Draws onto an SVG of this size; `None` if that fails, which for a text buffer it does not.
fn draw(size: (u32, u32), picture: impl FnOnce(DrawingArea<SVGBackend<'_>, Shift>) -> Drawn) -> Option<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        // Or its black text would be lost on a dark page.
        area.fill(&WHITE).ok()?;
        picture(area.clone()).ok()?;
        area.present().ok()?;
    }
    // Scales with the page.
    Some(svg.replacen(&format!("width=\"{}\" height=\"{}\"", size.0, size.1), "width=\"100%\"", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tokens_per_second: f64) -> CellSummary {
        let row = serde_json::json!({
            "name": "a", "routing": "original", "eviction": "lru", "capacity": "100%", "tokens": 1, "perplexity": 2.0,
            "perplexity_rise": 0.01, "miss_rate": 0.0, "misses_per_token": 0.0, "logical_bytes_per_token": 0.0,
            "changed_share": 0.0, "lifetime_mean": 1.0, "on_front": true,
        });
        CellSummary { tokens_per_second: Some(tokens_per_second), ..serde_json::from_value(row).unwrap() }
    }

    #[test]
    fn a_line_joins_what_differs_in_strength_alone() {
        let series = |routing: &str| CellSummary { routing: routing.to_owned(), ..row(1.0) }.series();
        assert_eq!(series("cache-prior:lambda=0.1,j=2"), series("cache-prior:lambda=0.5,j=2"));
        assert_ne!(series("cache-prior:lambda=0.1,j=2"), series("cache-prior:lambda=0.1,j=3"));
        let names = ["original", "prune:k=3", "drop-cold:j=1", "max-rank:m=8,j=2"].map(series);
        assert_eq!(names, ["original", "prune", "drop-cold", "max-rank, j=2"]);
    }

    #[test]
    fn points_that_are_nowhere_are_left_out() {
        // Nothing is missed and computing is free.
        let (nowhere, somewhere) = (row(f64::INFINITY), row(20.0));
        assert!(pareto(&[&nowhere, &row(f64::NAN)], Across::TokensPerSecond).is_none());
        assert_eq!(
            pareto(&[&nowhere, &somewhere], Across::TokensPerSecond),
            pareto(&[&somewhere], Across::TokensPerSecond)
        );
    }
}
