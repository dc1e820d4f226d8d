//! The metadata of a file: keys in file order, and typed lookups whose errors name file, key, expected and found.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::{Array, Error, Strings, Value};

/// Keys and values, in file order; keys are unique.
///
/// A split file has the metadata of its part 1; of the other parts only `split.*` and `general.alignment` are used.
#[derive(Clone, Debug)]
pub struct Metadata {
    file: PathBuf,
    entries: Vec<(String, Value)>,
    /// Places in `entries`, by ascending key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// Fails with the second of two equal keys and its place.
    pub(crate) fn new(file: &Path, entries: Vec<(String, Value)>) -> Result<Metadata, (usize, String)> {
        let mut by_key: Vec<u32> = (0..entries.len() as u32).collect();
        by_key.sort_by(|&a, &b| entries[a as usize].0.cmp(&entries[b as usize].0));
        for pair in by_key.windows(2) {
            let second = pair[1] as usize; // in file order: the sort is stable
            if entries[pair[0] as usize].0 == entries[second].0 {
                return Err((second, entries[second].0.clone()));
            }
        }
        Ok(Metadata { file: file.into(), entries, by_key })
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let place = self.by_key.binary_search_by(|&entry| self.entries[entry as usize].0.as_str().cmp(key)).ok()?;
        Some(&self.entries[self.by_key[place] as usize].1)
    }

    /// The value of `key` as a `T`; `None` if there is no such key.
    ///
    /// # Errors
    ///
    /// [`Error::WrongValue`] if the value is no `T`.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match T::from_value(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::WrongValue {
                file: self.file.clone(),
                key: key.into(),
                expected: T::EXPECTED,
                found: value.describe(),
            }),
        }
    }

    /// The value of `key` as a `T`.
    ///
    /// # Errors
    ///
    /// [`Error::MissingKey`], or [`Error::WrongValue`] if the value is no `T`.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, Error> {
        self.find(key)?.ok_or_else(|| Error::MissingKey {
            file: self.file.clone(),
            key: key.into(),
            expected: T::EXPECTED,
        })
    }
}

macro_rules! named_lookups {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        /// [`Metadata::require`] by the name of the type; its errors.
        #[allow(clippy::missing_errors_doc)] // said once above
        impl Metadata {
            $($(#[$doc])*
            pub fn $name(&self, key: &str) -> Result<$type, Error> {
                self.require(key)
            })*
        }
    };
}

named_lookups! {
    /// A string that is UTF-8.
    string: &str;
    /// An integer of any width that fits.
    u32: u32;
    /// An integer of any width that fits.
    u64: u64;
    /// An integer of any width that fits.
    i32: i32;
    /// An integer of any width that fits.
    usize: usize;
    /// An f32, or an f64 in its range (rounded).
    f32: f32;
    /// A bool.
    bool: bool;
    /// An array of strings.
    strings: &Strings;
    /// An array of f32.
    f32s: &[f32];
    /// An array of integers of any width that all fit.
    i32s: Cow<'_, [i32]>;
    /// An array of integers of any width that all fit.
    u32s: Cow<'_, [u32]>;
    /// An array of bools.
    bools: &[bool];
}

/// What a metadata value can be looked up as.
pub trait FromValue<'a>: Sized {
    /// For messages.
    const EXPECTED: &'static str;

    /// `None` if the value has another type or does not fit.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! integers {
    ($($type:ty: $expected:literal),*) => {
        $(impl FromValue<'_> for $type {
            const EXPECTED: &'static str = $expected;

            fn from_value(value: &Value) -> Option<$type> {
                <$type>::try_from(value.as_integer()?).ok()
            }
        })*
    };
}

integers!(u16: "an integer that fits u16", u32: "an integer that fits u32", u64: "an integer that fits u64");
integers!(i32: "an integer that fits i32", i64: "an integer that fits i64", usize: "an integer that fits usize");

impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "an f32";

    fn from_value(value: &Value) -> Option<f32> {
        match *value {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32).filter(|rounded| rounded.is_finite() || !x.is_finite()),
            _ => None,
        }
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "a bool";

    fn from_value(value: &Value) -> Option<bool> {
        match *value {
            Value::Bool(x) => Some(x),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "a UTF-8 string";

    fn from_value(value: &'a Value) -> Option<&'a str> {
        value.as_str()
    }
}

macro_rules! arrays {
    ($($type:ty, $name:ident: $expected:literal),*) => {
        $(impl<'a> FromValue<'a> for $type {
            const EXPECTED: &'static str = $expected;

            fn from_value(value: &'a Value) -> Option<$type> {
                match value {
                    Value::Array(Array::$name(x)) => Some(x),
                    _ => None,
                }
            }
        })*
    };
}

arrays!(&'a Strings, String: "an array of strings", &'a [f32], F32: "an array of f32");
arrays!(&'a [bool], Bool: "an array of bools");

macro_rules! integer_arrays {
    ($($type:ty, $name:ident: $expected:literal),*) => {
        $(impl<'a> FromValue<'a> for Cow<'a, [$type]> {
            const EXPECTED: &'static str = $expected;

            fn from_value(value: &'a Value) -> Option<Cow<'a, [$type]>> {
                match value {
                    Value::Array(Array::$name(x)) => Some(Cow::Borrowed(x)),
                    Value::Array(array) => array.to_integers().map(Cow::Owned),
                    _ => None,
                }
            }
        })*
    };
}

integer_arrays!(i32, I32: "an array of integers that fit i32", u32, U32: "an array of integers that fit u32");

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        let entries = vec![
            ("wide".into(), Value::U64(7)),
            ("large".into(), Value::U64(1 << 40)),
            ("negative".into(), Value::I8(-1)),
            ("name".into(), Value::from("moce")),
            ("bytes".into(), Value::String(vec![0xff])),
            ("epsilon".into(), Value::F64(1e-6)),
            ("huge".into(), Value::F64(1e300)),
            ("ids".into(), Value::Array(Array::U32(vec![1, 2]))),
            ("mixed".into(), Value::Array(Array::I64(vec![1, -2, 1 << 40]))),
        ];
        Metadata::new(Path::new("m.gguf"), entries).unwrap()
    }

    #[test]
    fn integers_of_any_width_are_taken_where_they_fit() {
        let metadata = metadata();
        assert_eq!(metadata.u32("wide").unwrap(), 7);
        assert_eq!(metadata.i32("negative").unwrap(), -1);
        assert_eq!(&*metadata.i32s("ids").unwrap(), [1, 2]);
        assert_eq!(
            metadata.u32("large").unwrap_err().to_string(),
            "m.gguf: key \"large\": expected an integer that fits u32, found u64 1099511627776"
        );
        assert!(metadata.u64("negative").is_err());
        assert!(metadata.i32s("mixed").is_err());
    }

    #[test]
    fn missing_differs_from_wrong() {
        let metadata = metadata();
        assert_eq!(metadata.find::<u32>("nothing").unwrap(), None);
        assert_eq!(
            metadata.u32("nothing").unwrap_err().to_string(),
            "m.gguf: key \"nothing\": expected an integer that fits u32, found no such key"
        );
        assert_eq!(
            metadata.find::<u32>("name").unwrap_err().to_string(),
            "m.gguf: key \"name\": expected an integer that fits u32, found string"
        );
        assert_eq!(
            metadata.string("ids").unwrap_err().to_string(),
            "m.gguf: key \"ids\": expected a UTF-8 string, found array of 2 u32"
        );
    }

    #[test]
    fn floats_and_strings_are_checked() {
        let metadata = metadata();
        assert_eq!(metadata.string("name").unwrap(), "moce");
        assert!(metadata.string("bytes").unwrap_err().to_string().ends_with("found a string that is not UTF-8"));
        assert_eq!(metadata.f32("epsilon").unwrap(), 1e-6);
        assert!(metadata.f32("huge").is_err());
        assert!(metadata.f32("wide").is_err());
    }

    #[test]
    fn equal_keys_are_found() {
        let entry = |key: &str| (key.to_string(), Value::U8(1));
        assert_eq!(
            Metadata::new(Path::new("m"), vec![entry("b"), entry("a"), entry("b")]).unwrap_err(),
            (2, "b".into())
        );
    }
}
