//! Which model a file of ours (a cache state, a trace) belongs to.

use crate::{Error, packed};
use fnv::FnvHasher;
use moce_gguf::Gguf;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::hash::Hasher;

/// What is hashed first, so that no identity of an earlier rule comes out again.
const VERSION: &[u8] = b"moce identity 2";
/// Bytes of a tensor that are hashed: 300 vectors and matrices give 1.2 MB, 30 ms from a device that answers in 0.1 ms.
const MOST_TENSOR_BYTES: usize = 4096;
/// Stacked experts have more dimensions than this; their contents are not looked at.
const MOST_DIMENSIONS: usize = 2;

/// A fingerprint of a model: 64-bit FNV-1a over its architecture, over name, type and dimensions of every tensor in directory order, and
/// over the first 4 KiB of each vector and matrix (stacked experts aside): norms, routers, embedding, attention. So another training gives
/// another identity, unless it changed nothing but experts or later rows. A packed model has its original's. It tells models apart, it
/// does not protect against forgery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ModelIdentity(u64);

impl ModelIdentity {
    /// The identity of an opened file.
    ///
    /// # Errors
    /// It cannot be read, or is packed and has a damaged header.
    pub(crate) fn of(gguf: &Gguf, architecture: &str) -> Result<ModelIdentity, Error> {
        if let Some(original) = packed::identity(gguf)? {
            return Ok(original);
        }
        let mut hash = FnvHasher::default();
        add(&mut hash, VERSION);
        add(&mut hash, architecture.as_bytes());
        let mut buffer = [0; MOST_TENSOR_BYTES];
        for tensor in gguf.tensors() {
            add(&mut hash, tensor.name().as_bytes());
            add(&mut hash, &tensor.tensor_type().id().to_le_bytes());
            tensor.dims().iter().for_each(|&dim| add(&mut hash, &(dim as u64).to_le_bytes()));
            if tensor.dims().len() <= MOST_DIMENSIONS {
                let start = &mut buffer[..tensor.bytes().min(MOST_TENSOR_BYTES)];
                gguf.read_at(tensor.part(), tensor.offset(), start)?;
                add(&mut hash, start);
            }
        }
        Ok(ModelIdentity(hash.finish()))
    }
}

impl ModelIdentity {
    /// The identity as a number, as traces hold it.
    pub fn fingerprint(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ModelIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl From<ModelIdentity> for String {
    fn from(identity: ModelIdentity) -> String {
        identity.to_string()
    }
}

impl TryFrom<String> for ModelIdentity {
    type Error = String;

    fn try_from(text: String) -> Result<ModelIdentity, String> {
        let number = u64::from_str_radix(&text, 16).ok().filter(|_| text.len() == 16);
        number.map(ModelIdentity).ok_or_else(|| format!("'{text}' is no model identity (16 hexadecimal digits)"))
    }
}

/// The bytes and their number, so that two fields cannot run into each other.
fn add(hash: &mut FnvHasher, bytes: &[u8]) {
    hash.write(bytes);
    hash.write(&(bytes.len() as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use moce_testkit::{TinyModel, Variant, variant};

    #[test]
    fn another_training_of_the_same_shape_is_another_model() {
        let TinyModel { gguf, .. } = TinyModel::open("qwen2moe");
        let identity = |gguf: &Gguf| ModelIdentity::of(gguf, "qwen2moe").unwrap();
        // One bit of one weight.
        let changed = |name: &str| {
            let tensor = |tensor: &moce_gguf::Tensor, mut bytes: Vec<u8>| {
                bytes[0] ^= u8::from(tensor.name() == name);
                (tensor.tensor_type(), bytes)
            };
            variant(&gguf, &Variant { metadata: &[], tensor: &tensor })
        };
        assert_eq!(identity(&changed("none")), identity(&gguf));
        for name in ["output_norm.weight", "blk.1.ffn_gate_inp.weight", "blk.0.ffn_norm.weight", "blk.1.attn_q.weight"]
        {
            assert!(gguf.find_tensor(name).is_some());
            assert_ne!(identity(&changed(name)), identity(&gguf), "{name}");
        }
        // Stacked experts are large and not looked at.
        assert!(gguf.find_tensor("blk.0.ffn_up_exps.weight").is_some());
        assert_eq!(identity(&changed("blk.0.ffn_up_exps.weight")), identity(&gguf));
    }
}
