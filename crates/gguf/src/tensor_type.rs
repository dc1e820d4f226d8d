//! ggml's tensor types: id, name and quant block geometry. All of them can be listed; those this project computes with
//! have a [`Format`].

use moce_quant::Format;

macro_rules! tensor_types {
    ($($name:ident = $id:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// How a tensor is stored, as GGUF names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[allow(non_camel_case_types, missing_docs)] // the names everybody knows from GGUF
        #[repr(u8)]
        pub enum TensorType {
            $($name = $id,)*
        }

        impl TensorType {
            /// Every type, by ascending id.
            pub const ALL: &[TensorType] = &[$(TensorType::$name),*];

            /// The type of an id in a file; `None` if there is no such type, or ggml has withdrawn it.
            pub const fn from_id(id: u32) -> Option<TensorType> {
                match id {
                    $($id => Some(TensorType::$name),)*
                    _ => None,
                }
            }

            /// ggml's name, in capitals.
            pub const fn name(self) -> &'static str {
                match self {
                    $(TensorType::$name => stringify!($name),)*
                }
            }

            /// Elements in one quant block.
            pub const fn block_len(self) -> usize {
                match self {
                    $(TensorType::$name => $block_len,)*
                }
            }

            /// Bytes of one quant block.
            pub const fn block_bytes(self) -> usize {
                match self {
                    $(TensorType::$name => $block_bytes,)*
                }
            }
        }
    };
}

// name = id, elements of a quant block, bytes of a quant block. Missing ids are types that ggml has withdrawn.
tensor_types! {
    F32 = 0, 1, 4;
    F16 = 1, 1, 2;
    Q4_0 = 2, 32, 18;
    Q4_1 = 3, 32, 20;
    Q5_0 = 6, 32, 22;
    Q5_1 = 7, 32, 24;
    Q8_0 = 8, 32, 34;
    Q8_1 = 9, 32, 36;
    Q2_K = 10, 256, 84;
    Q3_K = 11, 256, 110;
    Q4_K = 12, 256, 144;
    Q5_K = 13, 256, 176;
    Q6_K = 14, 256, 210;
    Q8_K = 15, 256, 292;
    IQ2_XXS = 16, 256, 66;
    IQ2_XS = 17, 256, 74;
    IQ3_XXS = 18, 256, 98;
    IQ1_S = 19, 256, 50;
    IQ4_NL = 20, 32, 18;
    IQ3_S = 21, 256, 110;
    IQ2_S = 22, 256, 82;
    IQ4_XS = 23, 256, 136;
    I8 = 24, 1, 1;
    I16 = 25, 1, 2;
    I32 = 26, 1, 4;
    I64 = 27, 1, 8;
    F64 = 28, 1, 8;
    IQ1_M = 29, 256, 56;
    BF16 = 30, 1, 2;
    TQ1_0 = 34, 256, 54;
    TQ2_0 = 35, 256, 66;
    MXFP4 = 39, 32, 17;
    NVFP4 = 40, 64, 36;
    Q1_0 = 41, 128, 18;
    Q2_0 = 42, 64, 18;
}

impl TensorType {
    /// The id in files.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The format to decode it with; `None` for types that are only listed.
    pub const fn format(self) -> Option<Format> {
        Some(match self {
            TensorType::F32 => Format::F32,
            TensorType::F16 => Format::F16,
            TensorType::BF16 => Format::BF16,
            TensorType::Q4_0 => Format::Q4_0,
            TensorType::Q4_1 => Format::Q4_1,
            TensorType::Q5_0 => Format::Q5_0,
            TensorType::Q8_0 => Format::Q8_0,
            _ => return None,
        })
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::TensorType;
    use moce_quant::Format;

    #[test]
    fn ids_and_geometry_agree_with_the_formats() {
        for &tensor_type in TensorType::ALL {
            assert_eq!(TensorType::from_id(tensor_type.id()), Some(tensor_type));
            if let Some(format) = tensor_type.format() {
                assert_eq!(tensor_type.name(), format.name());
                assert_eq!(tensor_type.block_len(), format.block_len(), "{tensor_type}");
                assert_eq!(tensor_type.block_bytes(), format.block_bytes(), "{tensor_type}");
            }
        }
        for format in Format::ALL {
            assert!(TensorType::ALL.iter().any(|t| t.format() == Some(format)), "{}", format.name());
        }
        assert_eq!(TensorType::from_id(4), None);
    }
}
