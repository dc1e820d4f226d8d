//! The tiny golden models (`fixtures/models`), and variants of them made in memory: other formats, parts taken out.

use moce_gguf::{Gguf, Tensor, TensorType, Value, Writer};
use moce_quant::Format;
use std::path::{Path, PathBuf};

/// A tiny model with the logits that `transformers` gives for a prompt.
pub struct TinyModel {
    /// Its directory.
    pub gguf: Gguf,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// `[tokens, vocabulary]`
    pub logits: Vec<f32>,
}

/// Every tiny model.
pub const TINY_MODELS: [&str; 6] = ["llama", "llama-linear", "llama-yarn", "mixtral", "qwen2moe", "qwen2moe-yarn"];

impl TinyModel {
    /// Reads a model of `fixtures/models`.
    pub fn open(name: &str) -> TinyModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models");
        let read = |path: PathBuf| std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let facts = String::from_utf8(read(folder.join(format!("{name}.json")))).expect("JSON is UTF-8");
        let (_, list) = facts.split_once("\"tokens\": [").expect("the prompt");
        let (list, _) = list.split_once(']').expect("the end of the prompt");
        let tokens = list.split(',').map(|id| id.trim().parse().expect("a token id")).collect();
        let logits = read(folder.join(format!("{name}.logits.f32")));
        let logits = logits.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let gguf = Gguf::open(&folder.join(format!("{name}.gguf"))).expect("the fixture is a GGUF file");
        TinyModel { gguf, tokens, logits }
    }
}

/// What becomes of a tensor: its type and bytes.
pub type ChangeTensor<'a> = dyn Fn(&Tensor, Vec<u8>) -> (TensorType, Vec<u8>) + 'a;

/// A change to a model: what becomes of each metadata value (`None`: left out), of each tensor's bytes, and of its type.
pub struct Variant<'a> {
    /// Metadata to set or, with `None`, to leave out.
    pub metadata: &'a [(&'a str, Option<Value>)],
    /// Gives a tensor's new type and bytes.
    pub tensor: &'a ChangeTensor<'a>,
}

/// The model with a change, in memory.
pub fn variant(model: &Gguf, change: &Variant<'_>) -> Gguf {
    let mut writer = Writer::new();
    for (key, value) in model.metadata().iter() {
        if !change.metadata.iter().any(|(changed, _)| *changed == key) {
            writer.set(key, value.clone()).expect("a key that was read can be written");
        }
    }
    for (key, value) in change.metadata {
        if let Some(value) = value {
            writer.set(key, value.clone()).expect("the new value can be written");
        }
    }
    let mut data = Vec::new();
    for tensor in model.tensors() {
        let mut bytes = vec![0; tensor.bytes()];
        model.read_tensor(tensor, &mut bytes).expect("the tensor can be read");
        let (tensor_type, bytes) = (change.tensor)(tensor, bytes);
        writer.add_tensor(tensor.name(), tensor_type, tensor.dims()).expect("a tensor that was read can be written");
        data.push(bytes);
    }
    let mut data = data.iter();
    let bytes = writer.to_bytes(|_, out| out.write_all(data.next().expect("as many as declared")));
    Gguf::parse("variant.gguf", bytes.expect("writing into memory")).expect("what was written can be read")
}

/// The model with every matrix but routers and norms in another format; those whose rows are no whole quant blocks stay F32.
pub fn requantised(model: &Gguf, format: Format) -> Gguf {
    let tensor = |tensor: &Tensor, bytes: Vec<u8>| {
        let is_matrix = tensor.dims().len() > 1 && !tensor.name().contains("ffn_gate_inp");
        let target =
            TensorType::ALL.iter().copied().find(|t| t.format() == Some(format)).expect("every format has a type");
        match (is_matrix, format.row_bytes(tensor.columns())) {
            (true, Some(row_bytes)) => {
                let values = floats(&bytes);
                let mut encoded = vec![0; values.len() / tensor.columns() * row_bytes];
                moce_quant::encode(format, &values, &mut encoded);
                (target, encoded)
            }
            _ => (tensor.tensor_type(), bytes),
        }
    };
    variant(model, &Variant { metadata: &[], tensor: &tensor })
}

/// The model with gate and up projection of its experts in one tensor a layer.
pub fn fused(model: &Gguf) -> Gguf {
    let mut writer = Writer::new();
    model.metadata().iter().for_each(|(key, value)| {
        writer.set(key, value.clone()).expect("a model that was read can be read and written")
    });
    let mut data = Vec::new();
    for tensor in model.tensors().filter(|tensor| !tensor.name().contains("ffn_up_exps")) {
        let read = |tensor: &Tensor| {
            let mut bytes = vec![0; tensor.bytes()];
            model.read_tensor(tensor, &mut bytes).expect("a model that was read can be read and written");
            bytes
        };
        let gate = read(tensor);
        if !tensor.name().contains("ffn_gate_exps") {
            writer
                .add_tensor(tensor.name(), tensor.tensor_type(), tensor.dims())
                .expect("a model that was read can be read and written");
            data.push(gate);
            continue;
        }
        let up = read(
            model.tensor(&tensor.name().replace("gate", "up")).expect("a model that was read can be read and written"),
        );
        let &[columns, rows, experts] = tensor.dims() else { panic!("stacked experts have three dimensions") };
        let name = tensor.name().replace("gate", "gate_up");
        writer
            .add_tensor(&name, tensor.tensor_type(), &[columns, 2 * rows, experts])
            .expect("a model that was read can be read and written");
        let matrix = gate.len() / experts;
        data.push(gate.chunks(matrix).zip(up.chunks(matrix)).flat_map(|(gate, up)| [gate, up].concat()).collect());
    }
    let mut data = data.iter();
    Gguf::parse(
        "fused.gguf",
        writer
            .to_bytes(|_, out| out.write_all(data.next().expect("a model that was read can be read and written")))
            .expect("a model that was read can be read and written"),
    )
    .expect("a model that was read can be read and written")
}

/// Little-endian f32 values.
pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
