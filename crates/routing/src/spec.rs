//! Reading `name:key=value,key=value`, the form of policies and evictions on the command line. Strict: an unknown or repeated
//! key, an empty value or a number with anything after it is an error that names key, text and what is allowed.
//!
//! Knows no policy; reads no file.

use crate::Error;

/// A specification whose parameters are taken one by one; [`finish`](Self::finish) refuses what nobody took.
pub(crate) struct Spec<'a> {
    pub(crate) option: &'static str,
    pub(crate) name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Spec<'a> {
    /// Splits `text`; `option` says what is being read.
    pub(crate) fn split(option: &'static str, text: &'a str) -> Result<Self, Error> {
        let malformed = || Error::Spec {
            option: option.to_owned(),
            given: text.to_owned(),
            allowed: "NAME or NAME:key=value,key=value with each key once".to_owned(),
        };
        let Some((name, rest)) = text.split_once(':') else {
            return Ok(Self { option, name: text, parameters: Vec::new() });
        };
        let mut parameters: Vec<(&str, &str)> = Vec::new();
        for parameter in rest.split(',') {
            let (key, value) = parameter.split_once('=').ok_or_else(malformed)?;
            if key.is_empty() || value.is_empty() || parameters.iter().any(|(other, _)| *other == key) {
                return Err(malformed());
            }
            parameters.push((key, value));
        }
        Ok(Self { option, name, parameters })
    }

    /// The text of a parameter, if given.
    pub(crate) fn text(&mut self, key: &str) -> Option<&'a str> {
        let at = self.parameters.iter().position(|(other, _)| *other == key)?;
        Some(self.parameters.swap_remove(at).1)
    }

    /// A whole number, if given.
    pub(crate) fn whole<T: std::str::FromStr>(&mut self, key: &str, allowed: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.text(key) else { return Ok(None) };
        // `from_str` takes a leading plus sign, which nobody writes on purpose.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number.map(Some).ok_or_else(|| self.error(key, text, allowed))
    }

    /// The error for a missing parameter.
    pub(crate) fn missing(&self, key: &str, allowed: &str) -> Error {
        Error::Missing { option: format!("{} {}: {key}", self.option, self.name), allowed: allowed.to_owned() }
    }

    /// The error for a parameter with a wrong value.
    pub(crate) fn error(&self, key: &str, given: &str, allowed: &str) -> Error {
        Error::Spec {
            option: format!("{} {}: {key}", self.option, self.name),
            given: given.to_owned(),
            allowed: allowed.to_owned(),
        }
    }

    /// Refuses parameters that nobody took; `known` lists those there are.
    pub(crate) fn finish(&self, known: &str) -> Result<(), Error> {
        match self.parameters.first() {
            None => Ok(()),
            Some((key, value)) => Err(Error::Spec {
                option: format!("{} {}", self.option, self.name),
                given: format!("{key}={value}"),
                allowed: known.to_owned(),
            }),
        }
    }
}

/// A non-negative decimal number, in percent if it ends so. `None` for anything else, infinities and NaN included.
pub(crate) fn ratio(text: &str) -> Option<f64> {
    let (number, percent) = match text.strip_suffix('%') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let decimal = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let scientific = number.bytes().all(|byte| byte.is_ascii_digit() || b".eE-".contains(&byte))
        && number.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
    let parsed = match (percent, decimal, scientific) {
        // Scaled as text, so that 15% is the number nearest to 0.15 and not a rounded quotient.
        (true, true, _) => format!("{number}e-2").parse::<f64>(),
        (false, true, _) | (false, false, true) => number.parse::<f64>(),
        _ => return None,
    };
    parsed.ok().filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_strict() {
        let good =
            [("0.15", 0.15), ("15%", 0.15), ("12.5%", 0.125), ("1e-6", 1e-6), ("0", 0.0), ("1", 1.0), (".5", 0.5)];
        for (text, value) in good {
            assert_eq!(ratio(text), Some(value), "{text}");
        }
        for text in ["", "%", "-1", "+1", "nan", "inf", "0.1x", "0.1 ", "1e400", "0x1", "1e5%", "."] {
            assert_eq!(ratio(text), None, "{text}");
        }
    }

    #[test]
    fn malformed_specifications_are_refused() {
        for text in ["a:", "a:b", "a:b=", "a:=1", "a:b=1,b=2", "a:b=1,", "a:,b=1"] {
            assert!(Spec::split("routing", text).is_err(), "{text}");
        }
        let mut spec = Spec::split("routing", "a:b=1,c=2").unwrap();
        assert_eq!(spec.whole::<usize>("b", "").unwrap(), Some(1));
        assert_eq!(spec.finish("b").unwrap_err().to_string(), "routing a `c=2`: allowed is b");
        let mut spec = Spec::split("routing", "a:b=+1").unwrap();
        assert!(spec.whole::<usize>("b", "").is_err());
    }
}
