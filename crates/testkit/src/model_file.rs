//! A tiny model as a real file, in a folder that goes with the test: for what only files show (direct reads, damage, renaming).

use crate::{TinyModel, requantised};
use moce_gguf::{Gguf, Tensor, Writer};
use moce_quant::Format;
use std::path::{Path, PathBuf};

/// A model file in a folder of its own.
pub struct ModelFile {
    folder: tempfile::TempDir,
    /// The file.
    pub path: PathBuf,
    /// The tiny model's prompt.
    pub tokens: Vec<u32>,
}

impl ModelFile {
    /// Writes a model of `fixtures/models` with its matrices in `format`.
    pub fn new(name: &str, format: Format) -> ModelFile {
        let TinyModel { gguf, tokens, .. } = TinyModel::open(name);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("model.gguf");
        write(&requantised(&gguf, format), &path);
        ModelFile { folder, path, tokens }
    }

    /// The folder, for more files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn write(gguf: &Gguf, path: &Path) {
    let mut writer = Writer::new();
    writer.copy_from(gguf).expect("a model that was read can be written");
    let data = |tensor: &Tensor, out: &mut dyn std::io::Write| {
        let mut bytes = vec![0; tensor.bytes()];
        let original = gguf.tensor(tensor.name()).map_err(std::io::Error::other)?;
        gguf.read_tensor(original, &mut bytes).map_err(std::io::Error::other)?;
        out.write_all(&bytes)
    };
    writer.create(path, data).expect("the temporary folder takes the model");
}
