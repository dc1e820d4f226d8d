//! What this crate takes at most; GGUF itself sets few limits. A file beyond them is refused with an error that says so.

/// Header of one file: metadata and tensor entries. The largest vocabularies in use need about 20 MB.
pub const HEADER_BYTES: u64 = 256 << 20;

/// Metadata keys of one file. Models have some dozens.
pub const KEYS: usize = 65_536;

/// Tensors of one file. The largest models have some thousands, with a tensor for each expert some ten thousands.
pub const TENSORS: usize = 262_144;

/// A metadata key or tensor name (GGUF's limit for keys).
pub const NAME_BYTES: u64 = 65_535;

/// Arrays within arrays.
pub const ARRAY_DEPTH: usize = 4;

/// Arrays that are elements of others, in one file. They take more memory than bytes; no model has any.
pub const INNER_ARRAYS: usize = 65_536;

/// Dimensions of a tensor (ggml's limit).
pub const DIMS: usize = 4;

/// `general.alignment`: a power of two from 1 to this.
pub const ALIGNMENT: u64 = 16 << 20;

/// Parts of a split file: the name has five digits, `split.count` is a u16.
pub const PARTS: u32 = 65_535;
