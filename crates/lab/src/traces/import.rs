//! Traces of other engines: `.route.csv`, version 1, as DriftWood and BigMoeOnEdge write it.
//!
//! Lines that begin with `#` name the model (`model= arch= n_layer= n_expert= n_expert_used=`) and for each MoE layer `layer= expert_bytes=`.
//! Then `turn,phase,step,layer,slot,expert,weight,residency,expert_bytes`, a line for each chosen expert: phase 0 is the prompt, 1
//! generation; slot 0 is the strongest. There are no scores in it.

use crate::Error;
use moce_engine::routing::{
    Phase, Start, TextStart, TouchOrder, TraceHeader, TraceLayer, TraceModel, TraceToken, TraceWriter,
};
use std::collections::HashMap;
use std::io::{BufRead, Write};

const COLUMNS: &str = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes";
/// Lines of a file at most: what is read stays in memory until it is sorted.
const MOST_ROWS: usize = 50_000_000;

/// A chosen expert. In this order rows are a trace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    turn: u32,
    step: u32,
    phase: u8,
    layer: u16,
    slot: u16,
    expert: u32,
    /// Of the file, from 1.
    line: u32,
}

/// Reads a `.route.csv` and writes it as a trace of selections. Gives the writer back and the number of tokens.
///
/// # Errors
/// The file is something else, or a line of it is wrong: the message names it; or the trace cannot be written.
pub fn import_route_csv<W: Write>(input: impl BufRead, output: W) -> Result<(W, u64), Error> {
    let mut preamble = Preamble::default();
    let mut rows = Vec::new();
    let mut has_columns = false;
    for (number, line) in (1..).zip(input.lines()) {
        let line = line?;
        let line = line.trim_end();
        let wrong = |problem: String| Error::Import { line: number, problem };
        if let Some(comment) = line.strip_prefix('#') {
            if !rows.is_empty() {
                return Err(wrong("a line about the model behind the choices".to_owned()));
            }
            preamble.read(comment).map_err(wrong)?;
        } else if !has_columns {
            if line != COLUMNS {
                return Err(wrong(format!("expected the columns {COLUMNS}")));
            }
            has_columns = true;
        } else if rows.len() == MOST_ROWS {
            return Err(wrong(format!("more than {MOST_ROWS} lines")));
        } else {
            rows.push(Row { line: number, ..preamble.row(line).map_err(wrong)? });
        }
    }
    if rows.is_empty() {
        return Err(Error::Import { line: 1, problem: "no route.csv: there are no choices in it".to_owned() });
    }
    rows.sort_unstable();
    write(preamble.header(), &rows, output)
}

/// Writes rows in order.
fn write<W: Write>(header: TraceHeader, rows: &[Row], output: W) -> Result<(W, u64), Error> {
    let mut writer = TraceWriter::new(output, header)?;
    let mut turn = None;
    for rows in rows.chunk_by(|a, b| (a.turn, a.step) == (b.turn, b.step)) {
        let mut token = TraceToken::new(writer.header());
        token.phase = if rows[0].phase == 0 { Phase::Prompt } else { Phase::Generation };
        token.start = (turn.replace(rows[0].turn) != Some(rows[0].turn)).then_some(TextStart::Sequence);
        for rows in rows.chunk_by(|a, b| a.layer == b.layer) {
            let experts: Vec<u32> = rows.iter().map(|row| row.expert).collect();
            let repeated = (1..experts.len()).find(|&at| experts[..at].contains(&experts[at]));
            if repeated.is_some() || experts.len() > writer.header().experts_per_token {
                let problem = format!("with others of its step and layer it makes the choice {experts:?}");
                return Err(Error::Import { line: rows[rows.len() - 1].line, problem });
            }
            token.set_layer(rows[0].layer.into(), &experts, &[]);
        }
        writer.write(&token)?;
    }
    let tokens = writer.tokens();
    Ok((writer.finish()?, tokens))
}

/// What the lines with `#` say.
#[derive(Default)]
struct Preamble {
    model: String,
    architecture: String,
    experts: usize,
    per_token: usize,
    expert_bytes: Vec<u64>,
    /// Index among the MoE layers of each layer that has experts.
    index: HashMap<u32, u16>,
}

impl Preamble {
    fn read(&mut self, comment: &str) -> Result<(), String> {
        let fields: HashMap<&str, &str> =
            comment.split_whitespace().filter_map(|field| field.split_once('=')).collect();
        if let Some(model) = fields.get("model") {
            let name = model.rsplit(['/', '\\']).next().unwrap_or_default();
            self.model = name.strip_suffix(".gguf").unwrap_or(name).to_owned();
            self.architecture = fields.get("arch").copied().unwrap_or_default().to_owned();
            self.experts = number(fields.get("n_expert"), "n_expert")?;
            self.per_token = number(fields.get("n_expert_used"), "n_expert_used")?;
        }
        if fields.contains_key("layer") {
            let layer: u32 = number(fields.get("layer"), "layer")?;
            let bytes: u64 = number(fields.get("expert_bytes"), "expert_bytes")?;
            if bytes > 0 {
                let index = u16::try_from(self.expert_bytes.len()).map_err(|_| "too many layers".to_owned())?;
                if self.index.insert(layer, index).is_some() {
                    return Err(format!("layer {layer} comes twice"));
                }
                self.expert_bytes.push(bytes);
            }
        }
        Ok(())
    }

    fn row(&self, line: &str) -> Result<Row, String> {
        let mut fields = line.split(',');
        let mut next = |name: &str| -> Result<u32, String> { number(fields.next().as_ref(), name) };
        let (turn, phase, step) = (next("turn")?, next("phase")?, next("step")?);
        let (layer, slot, expert) = (next("layer")?, next("slot")?, next("expert")?);
        let layer = self.index.get(&layer).copied().ok_or_else(|| format!("layer {layer} is in no line with #"))?;
        if phase > 1 || expert as usize >= self.experts || slot as usize >= self.per_token || fields.count() != 3 {
            return Err(format!(
                "expected phase 0 or 1, experts below {}, slots below {}, and nine fields",
                self.experts, self.per_token
            ));
        }
        Ok(Row { turn, step, phase: phase as u8, layer, slot: slot as u16, expert, line: 0 })
    }

    fn header(self) -> TraceHeader {
        TraceHeader {
            model: TraceModel { name: self.model, architecture: self.architecture, ..TraceModel::default() },
            layers: self.expert_bytes.iter().map(|&expert_bytes| TraceLayer { expert_bytes, capacity: 0 }).collect(),
            experts: self.experts,
            experts_per_token: self.per_token,
            scores: None,
            policy: "original".to_owned(),
            prompt_policy: "original".to_owned(),
            eviction: "lru".to_owned(),
            touch: TouchOrder::StrongFirst,
            start: Start::Empty,
        }
    }
}

fn number<T: std::str::FromStr>(text: Option<&&str>, name: &str) -> Result<T, String> {
    let text = text.copied().ok_or_else(|| format!("{name} is missing"))?;
    text.parse().map_err(|_| format!("{name}: expected a whole number, found '{text}'"))
}
