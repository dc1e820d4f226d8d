//! The models that ship with the repository, under `models/`.

use std::path::{Path, PathBuf};

/// The first part of the demo model.
pub fn demo_model() -> PathBuf {
    folder().join("demo-00001-of-00004.gguf")
}

/// The small model of Mixtral's shape.
pub fn mixtral_shape() -> PathBuf {
    folder().join("mixtral-shape.gguf")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}
