//! The report of a sweep: one HTML file that needs nothing else, to be read on paper and on a phone, and its plots as files.

use super::cell::file_name;
use super::charts::{self, Across};
use super::store::CellResult;
use super::summary::CellSummary;
use crate::Study;
use std::fmt::Write;

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #111; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem }
div.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.front td { font-weight: 600 }
svg { max-width: 100%; height: auto; min-width: 45rem } figure { margin: 1rem 0; overflow-x: auto } figcaption { color: #555; font-size: 0.85rem }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0 } svg { min-width: 0 } figure { overflow: visible } figure, tr { break-inside: avoid }
  div.wide { overflow: visible } table { font-size: 7.5pt } th, td { white-space: normal; padding: 0.1rem 0.3rem }
}";

/// Names and contents of the files: `report.html` and an SVG for each plot.
pub(super) fn files(study: &Study, results: &[CellResult], rows: &[CellSummary]) -> Vec<(String, String)> {
    let mut report = Report { html: String::new(), plots: Vec::new() };
    report.head(study, rows);
    let mut groups: Vec<(&str, &str)> = rows.iter().map(|row| (&*row.capacity, &*row.eviction)).collect();
    groups.dedup();
    for (capacity, eviction) in groups {
        let rows: Vec<&CellSummary> =
            rows.iter().filter(|row| row.capacity == capacity && row.eviction == eviction).collect();
        let find = |row: &&CellSummary| results.iter().find(|result| result.name == row.name);
        let results: Vec<&CellResult> = rows.iter().filter_map(find).collect();
        report.group(capacity, eviction, &rows, &results);
    }
    if let Some(result) = results.iter().find(|result| result.report.routing == "original") {
        report.write("<h2>Experts in use</h2>");
        report.plot(
            "usage.svg",
            charts::usage(result),
            "Share of the choices of each expert under the original routing.",
        );
    }
    report.write("</body></html>\n");
    let Report { html, mut plots } = report;
    plots.push(("report.html".to_owned(), html));
    plots
}

struct Report {
    html: String,
    plots: Vec<(String, String)>,
}

impl Report {
    fn write(&mut self, html: &str) {
        self.html.push_str(html);
    }

    fn head(&mut self, study: &Study, rows: &[CellSummary]) {
        let tokens = rows.first().map_or(0, |row| row.tokens);
        let model = escape(&study.model);
        let why = rows.iter().find_map(CellSummary::why_no_interval);
        let why = why.map_or(String::new(), |why| format!(" ({why})"));
        let _ = write!(
            self.html,
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>Routing sweep: {model}</title><style>{STYLE}</style></head><body>\
             <h1>Routing sweep: {model}</h1>\
             <p>{} layers with experts, {} experts, {} a token. {tokens} tokens scored in windows of {}; text of {} bytes \
             (FNV-1a {}), model {}. The policy applies to every token; caches start anew in each window ({}), the range goes on. \
             Rises with their 95 % interval, by paired bootstrap over blocks of windows{why}. \
             Bold: no other cell of the same capacity has both fewer misses and lower perplexity.</p>",
            study.layers,
            study.experts,
            study.experts_per_token,
            study.window,
            study.text_bytes,
            escape(&study.text_hash),
            escape(&study.model_identity),
            escape(&study.start),
        );
    }

    fn group(&mut self, capacity: &str, eviction: &str, rows: &[&CellSummary], results: &[&CellResult]) {
        let (shown, file) =
            (escape(&format!("{capacity} experts cached, {eviction}")), file_name(&format!("{capacity}-{eviction}")));
        let _ = write!(self.html, "<h2>{shown}</h2>");
        let misses = charts::pareto(rows, Across::MissRate);
        self.plot(
            &format!("pareto-{file}.svg"),
            misses,
            "Quality against misses. Filled: not beaten. Rises above 10 % are left out.",
        );
        if rows.iter().any(|row| row.tokens_per_second.is_some()) {
            let speed = charts::pareto(rows, Across::TokensPerSecond);
            self.plot(&format!("speed-{file}.svg"), speed, "Quality against the speed that the timing model gives.");
        }
        self.table(rows);
        let heat = charts::heat_map(results);
        self.plot(&format!("layers-{file}.svg"), heat, "Misses by layer; white: none, dark: all.");
    }

    /// A row for each cell, with the columns that any of them has.
    fn table(&mut self, rows: &[&CellSummary]) {
        type Shown = fn(&CellSummary) -> String;
        let columns: [(&str, Shown); 12] = [
            ("routing", |row| escape(&row.routing)),
            ("perplexity", |row| format!("{:.3}", row.perplexity)),
            ("rise", CellSummary::rise_text),
            ("KL", |row| row.kl_mean.map_or(String::new(), |kl| format!("{kl:.4}"))),
            ("same top token", |row| row.top1_agreement.map_or(String::new(), percent)),
            ("misses", |row| percent(row.miss_rate)),
            ("a token", |row| format!("{:.1}", row.misses_per_token)),
            ("bytes a token", |row| format!("{:.2} MB", row.logical_bytes_per_token / 1e6)),
            ("changed", |row| percent(row.changed_share)),
            ("top J kept", |row| row.top_j_kept.map_or(String::new(), percent)),
            ("lifetime", |row| format!("{:.1}", row.lifetime_mean)),
            ("tokens/s", |row| row.tokens_per_second.map_or(String::new(), |speed| format!("{speed:.1}"))),
        ];
        let is_used = |(_, shown): &&(&str, Shown)| rows.iter().any(|row| !shown(row).is_empty());
        let columns: Vec<&(&str, Shown)> = columns.iter().filter(is_used).collect();
        self.write("<div class=\"wide\"><table><tr>");
        columns.iter().for_each(|(name, _)| self.write(&format!("<th>{name}</th>")));
        for row in rows {
            self.write(if row.on_front { "</tr><tr class=\"front\">" } else { "</tr><tr>" });
            columns.iter().for_each(|(_, shown)| self.write(&format!("<td>{}</td>", shown(row))));
        }
        self.write("</tr></table></div>");
    }

    fn plot(&mut self, file: &str, svg: Option<String>, caption: &str) {
        let Some(svg) = svg else { return };
        let _ = write!(self.html, "<figure>{svg}<figcaption>{}</figcaption></figure>", escape(caption));
        self.plots.push((file.to_owned(), svg));
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
