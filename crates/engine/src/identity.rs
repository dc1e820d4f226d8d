//! Which model a file of ours (a cache state, a trace) belongs to.

use crate::{Error, packed};
use moce_gguf::Gguf;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A fingerprint of a model: 64-bit FNV-1a over its architecture and over name, type and dimensions of every tensor in directory
/// order. A packed model has its original's. It tells models apart, it does not protect against forgery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ModelIdentity(u64);

impl ModelIdentity {
    /// The identity of an opened file.
    pub(crate) fn of(gguf: &Gguf, architecture: &str) -> Result<ModelIdentity, Error> {
        if let Some(original) = packed::identity(gguf)? {
            return Ok(original);
        }
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        hash.bytes(architecture.as_bytes());
        for tensor in gguf.tensors() {
            hash.bytes(tensor.name().as_bytes());
            hash.bytes(&tensor.tensor_type().id().to_le_bytes());
            tensor.dims().iter().for_each(|&dim| hash.bytes(&(dim as u64).to_le_bytes()));
        }
        Ok(ModelIdentity(hash.0))
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

struct Fnv(u64);

impl Fnv {
    /// The bytes and their number, so that two fields cannot run into each other.
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
