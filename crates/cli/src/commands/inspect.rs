//! `moce inspect`: what is in a model file, from its headers; for the identity it reads the beginnings of tensors. Also of architectures
//! that moce does not run.

use super::write_json;
use crate::arguments::Global;
use crate::{model_path, report};
use clap::{Args, ValueHint};
use moce_engine::packed::{self, Header};
use moce_engine::{Engine, ModelIdentity};
use moce_gguf::{Array, Gguf, Tensor, Value};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// GGUF file (of a split model, any part)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) model: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// List every metadata key
    #[arg(long)]
    pub(crate) metadata: bool,
}

/// Array elements and string bytes of a metadata value that are shown.
const SHOWN: usize = 8;
const SHOWN_BYTES: usize = 80;

pub(crate) fn run(arguments: &Inspect, global: &Global) -> anyhow::Result<()> {
    let path = model_path::resolve(arguments.model.as_deref())?;
    let gguf = Gguf::open(&path)?;
    let overview = Overview::new(&path, &gguf)?;
    let mut output = std::io::stdout().lock();
    if global.json {
        let document = Document {
            overview,
            metadata: arguments
                .metadata
                .then(|| gguf.metadata().iter().map(|(key, value)| (key.to_owned(), describe(value))).collect()),
            tensors: arguments.tensors.then(|| gguf.tensors().map(TensorRow::new).collect()),
        };
        write_json(&mut output, &document)?;
        return Ok(());
    }
    overview.print(&mut output)?;
    if arguments.metadata {
        writeln!(output, "\nmetadata")?;
        for (key, value) in gguf.metadata().iter() {
            writeln!(output, "  {:<42} {}", printable(key), describe(value))?;
        }
    }
    if arguments.tensors {
        writeln!(output, "\ntensors")?;
        for tensor in gguf.tensors() {
            let TensorRow { name, r#type, dims, bytes, part, offset } = TensorRow::new(tensor);
            let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
            let (name, dims) = (printable(&name), dims.join(" x "));
            writeln!(output, "  {name:<36} {type:<6} {dims:>20} {bytes:>12} B  part {part} at {offset}")?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    overview: Overview,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorRow>>,
}

#[derive(Serialize)]
struct TensorRow {
    name: String,
    r#type: &'static str,
    dims: Vec<usize>,
    bytes: usize,
    part: usize,
    offset: u64,
}

impl TensorRow {
    fn new(tensor: &Tensor) -> TensorRow {
        TensorRow {
            name: tensor.name().to_owned(),
            r#type: tensor.tensor_type().name(),
            dims: tensor.dims().to_vec(),
            bytes: tensor.bytes(),
            part: tensor.part() + 1,
            offset: tensor.offset(),
        }
    }
}

/// The model in a few lines.
#[derive(Serialize)]
struct Overview {
    file: String,
    parts: usize,
    file_bytes: u64,
    gguf_version: u32,
    architecture: String,
    identity: ModelIdentity,
    /// The instruction set that experts are ordered for, in a packed file.
    packed_for: Option<String>,
    name: Option<String>,
    licence: Option<String>,
    parameters: u64,
    layers: Option<u64>,
    hidden: Option<u64>,
    heads: Option<u64>,
    kv_heads: Option<u64>,
    context: Option<u64>,
    vocabulary: Option<u64>,
    experts: Option<Experts>,
    dense_bytes: u64,
    formats: BTreeMap<&'static str, FormatShare>,
}

#[derive(Serialize)]
struct Experts {
    count: u64,
    per_token: u64,
    layers: u64,
    /// Gate, up and down projection of one expert; the largest, where layers differ.
    expert_bytes: u64,
    total_bytes: u64,
    /// Read for one token if nothing were cached.
    bytes_per_token: u64,
}

#[derive(Default, Serialize)]
struct FormatShare {
    tensors: u64,
    bytes: u64,
}

impl Overview {
    fn new(path: &Path, gguf: &Gguf) -> anyhow::Result<Overview> {
        let metadata = gguf.metadata();
        let architecture = packed::architecture(gguf)?.to_owned();
        let key = |name: &str| metadata.find::<u64>(&format!("{architecture}.{name}"));
        // Of other architectures it may be an array of one number a layer.
        let heads = |name: &str| key(&format!("attention.{name}")).unwrap_or(None);
        let text = |name: &str| Ok::<_, moce_gguf::Error>(metadata.find::<&str>(name)?.map(str::to_owned));
        let mut formats = BTreeMap::<_, FormatShare>::new();
        let mut parameters = 0;
        let mut total_bytes = 0;
        let packed = Header::read(gguf)?;
        let matrices = matrices(gguf, packed.as_ref());
        for matrix in &matrices {
            let share = formats.entry(matrix.format).or_default();
            share.tensors += 1;
            share.bytes += matrix.bytes;
            parameters += matrix.elements;
            total_bytes += matrix.bytes;
        }
        let experts = match key("expert_count")? {
            Some(count) if count > 0 => Some(Experts::new(&matrices, count, key("expert_used_count")?.unwrap_or(0))),
            _ => None,
        };
        Ok(Overview {
            file: path.display().to_string(),
            parts: gguf.parts().len(),
            file_bytes: gguf.parts().iter().map(|part| part.bytes()).sum(),
            gguf_version: gguf.version(),
            name: text("general.name")?,
            licence: text("general.license")?,
            parameters,
            layers: key("block_count")?,
            hidden: key("embedding_length")?,
            heads: heads("head_count"),
            kv_heads: heads("head_count_kv"),
            context: key("context_length")?,
            vocabulary: gguf.find_tensor("token_embd.weight").map(|tensor| tensor.rows() as u64),
            dense_bytes: total_bytes - experts.as_ref().map_or(0, |experts| experts.total_bytes),
            experts,
            formats,
            packed_for: packed.map(|header| header.isa),
            identity: Engine::identity_of(gguf)?,
            architecture,
        })
    }

    fn print(&self, output: &mut impl Write) -> std::io::Result<()> {
        let mut line = |name: &str, value: String| writeln!(output, "{name:<13} {}", printable(&value));
        let optional = |value: Option<u64>| value.map_or("not stated".to_owned(), |value| value.to_string());
        let parts = if self.parts > 1 { format!(", {} parts", self.parts) } else { String::new() };
        line(
            "file",
            format!("{} ({}{parts}, GGUF version {})", self.file, report::size(self.file_bytes), self.gguf_version),
        )?;
        if let Some(name) = &self.name {
            line("name", name.clone())?;
        }
        if let Some(licence) = &self.licence {
            line("licence", licence.clone())?;
        }
        let packed = self.packed_for.as_ref().map_or(String::new(), |isa| format!(" (packed for {isa})"));
        line("architecture", format!("{}{packed}", self.architecture))?;
        line("identity", self.identity.to_string())?;
        line("parameters", format!("{:.1} million", self.parameters as f64 / 1e6))?;
        line("layers", optional(self.layers))?;
        line("hidden", optional(self.hidden))?;
        line(
            "heads",
            format!("{} ({} key and value heads)", optional(self.heads), optional(self.kv_heads.or(self.heads))),
        )?;
        line("context", optional(self.context))?;
        line("vocabulary", optional(self.vocabulary))?;
        line("dense", format!("{} that every token uses", report::size(self.dense_bytes)))?;
        if let Some(experts) = &self.experts {
            line(
                "experts",
                format!("{} in each of {} layers, {} a token", experts.count, experts.layers, experts.per_token),
            )?;
            line(
                "",
                format!("{} each, {} in all", report::size(experts.expert_bytes), report::size(experts.total_bytes)),
            )?;
            line("", format!("{} a token if none is cached", report::size(experts.bytes_per_token)))?;
        }
        let formats = self.formats.iter();
        let formats: Vec<String> = formats
            .map(|(name, share)| format!("{name} {} ({} tensors)", report::size(share.bytes), share.tensors))
            .collect();
        line("formats", formats.join(", "))
    }
}

impl Experts {
    fn new(matrices: &[Matrices], count: u64, per_token: u64) -> Experts {
        let mut by_layer = BTreeMap::<&str, u64>::new();
        for matrix in matrices {
            if let Some(layer) = &matrix.experts_of {
                *by_layer.entry(layer).or_default() += matrix.bytes;
            }
        }
        Experts {
            count,
            per_token,
            layers: by_layer.len() as u64,
            expert_bytes: by_layer.values().map(|bytes| bytes / count).max().unwrap_or(0),
            total_bytes: by_layer.values().sum(),
            bytes_per_token: by_layer.values().map(|bytes| bytes / count * per_token.min(count)).sum(),
        }
    }
}

/// A tensor, or one projection of all experts of a layer of a packed file.
struct Matrices {
    /// The layer, where they are experts.
    experts_of: Option<String>,
    format: &'static str,
    elements: u64,
    bytes: u64,
}

/// What the model consists of, without what packing added.
fn matrices(gguf: &Gguf, packed: Option<&Header>) -> Vec<Matrices> {
    let plain = |tensor: &Tensor| {
        let stacked = tensor.name().ends_with("_exps.weight").then(|| tensor.name().rsplit_once(".ffn"));
        Matrices {
            experts_of: stacked.map(|name| name.map_or_else(String::new, |(layer, _)| layer.to_owned())),
            format: tensor.tensor_type().name(),
            elements: tensor.elements() as u64,
            bytes: tensor.bytes() as u64,
        }
    };
    let Some(header) = packed else { return gguf.tensors().map(plain).collect() };
    let mut all: Vec<Matrices> = header.dense(gguf).map(plain).collect();
    for layer in &header.layers {
        let bytes = layer.bytes().expect("reading the header has looked");
        for ((format, (rows, columns)), bytes) in layer.formats.iter().zip(layer.shapes()).zip(bytes) {
            all.push(Matrices {
                experts_of: Some(format!("blk.{}", layer.block)),
                format: format.name(),
                elements: (rows * columns) as u64 * u64::from(layer.count),
                bytes: bytes as u64 * u64::from(layer.count),
            });
        }
    }
    all
}

/// A metadata value on one line; long ones are cut.
fn describe(value: &Value) -> String {
    match value {
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        Value::Bool(x) => x.to_string(),
        Value::String(bytes) => quote(bytes),
        Value::Array(array) => describe_array(array),
        _ => value.as_integer().map_or_else(String::new, |x| x.to_string()),
    }
}

fn describe_array(array: &Array) -> String {
    fn list<T>(items: impl Iterator<Item = T>, show: impl Fn(T) -> String) -> String {
        items.take(SHOWN).map(show).collect::<Vec<_>>().join(", ")
    }
    let shown = match array {
        Array::U8(items) => list(items.iter(), |x| x.to_string()),
        Array::I8(items) => list(items.iter(), |x| x.to_string()),
        Array::U16(items) => list(items.iter(), |x| x.to_string()),
        Array::I16(items) => list(items.iter(), |x| x.to_string()),
        Array::U32(items) => list(items.iter(), |x| x.to_string()),
        Array::I32(items) => list(items.iter(), |x| x.to_string()),
        Array::U64(items) => list(items.iter(), |x| x.to_string()),
        Array::I64(items) => list(items.iter(), |x| x.to_string()),
        Array::F32(items) => list(items.iter(), |x| x.to_string()),
        Array::F64(items) => list(items.iter(), |x| x.to_string()),
        Array::Bool(items) => list(items.iter(), |x| x.to_string()),
        Array::String(items) => list(items.iter(), quote),
        Array::Array(items) => list(items.iter(), describe_array),
    };
    let rest = if array.len() > SHOWN { ", ..." } else { "" };
    format!("[{shown}{rest}] ({} {})", array.len(), array.element_type().name())
}

/// A text of the file without what would move a terminal's cursor.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    text.chars().map(shown).collect()
}

fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let cut: String = text.chars().take(SHOWN_BYTES).collect();
    let rest = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{rest}")
}
