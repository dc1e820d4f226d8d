//! The report of a sweep: one HTML file that needs nothing else, to be read on paper and on a phone, and its plots as files.

use super::charts::{self, Across};
use super::store::{CellResult, Study};
use super::summary::CellSummary;
use std::fmt::Write;

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #111; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem }
div.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.front td { font-weight: 600 }
svg { max-width: 100%; height: auto } figure { margin: 1rem 0 } figcaption { color: #555; font-size: 0.85rem }
@media print { body { font-size: 10pt; max-width: none } figure, table { break-inside: avoid } }";

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
        let _ = write!(
            self.html,
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>Routing sweep: {model}</title><style>{STYLE}</style></head><body>\
             <h1>Routing sweep: {model}</h1>\
             <p>{} layers with experts, {} experts, {} a token. {tokens} tokens scored in windows of {}; text of {} bytes \
             (FNV-1a {}), model {}. The policy applies to every token; caches start empty in each window, the range goes on. \
             Rises with their 95 % interval, by paired bootstrap over windows. \
             Bold: no other cell of the same capacity has both fewer misses and lower perplexity.</p>",
            study.layers,
            study.experts,
            study.experts_per_token,
            study.window,
            study.text_bytes,
            escape(&study.text_hash),
            escape(&study.model_identity),
        );
    }

    fn group(&mut self, capacity: &str, eviction: &str, rows: &[&CellSummary], results: &[&CellResult]) {
        let (shown, file) = (escape(&format!("{capacity} experts cached, {eviction}")), file_name(capacity, eviction));
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

    fn table(&mut self, rows: &[&CellSummary]) {
        self.write(
            "<div class=\"wide\"><table><tr><th>routing</th><th>perplexity</th><th>rise</th><th>KL</th><th>same top token</th><th>misses</th><th>a token</th>\
             <th>bytes a token</th><th>changed</th><th>lifetime</th><th>tokens/s</th></tr>",
        );
        for row in rows {
            let class = if row.on_front { " class=\"front\"" } else { "" };
            let rise = row.rise_text();
            let kl = row.kl_mean.map_or(String::new(), |kl| format!("{kl:.4}"));
            let agreement = row.top1_agreement.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
            let speed = row.tokens_per_second.map_or(String::new(), |speed| format!("{speed:.1}"));
            let _ = write!(
                self.html,
                "<tr{class}><td>{}</td><td>{:.3}</td><td>{rise}</td><td>{kl}</td><td>{agreement}</td><td>{:.1} %</td><td>{:.1}</td><td>{:.2} MB</td>\
                 <td>{:.1} %</td><td>{:.1}</td><td>{speed}</td></tr>",
                escape(&row.routing),
                row.perplexity,
                100.0 * row.miss_rate,
                row.misses_per_token,
                row.logical_bytes_per_token / 1e6,
                100.0 * row.changed_share,
                row.lifetime_mean,
            );
        }
        self.write("</table></div>");
    }

    fn plot(&mut self, file: &str, svg: Option<String>, caption: &str) {
        let Some(svg) = svg else { return };
        let _ = write!(self.html, "<figure>{svg}<figcaption>{}</figcaption></figure>", escape(caption));
        self.plots.push((file.to_owned(), svg));
    }
}

fn file_name(capacity: &str, eviction: &str) -> String {
    let character = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("{capacity}-{eviction}").chars().map(character).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
