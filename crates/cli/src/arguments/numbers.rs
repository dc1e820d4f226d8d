//! Whole numbers on the command line: read strictly, and refused with what is allowed.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A parser of whole numbers of a range.
pub(crate) fn whole<T>(allowed: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text: &str| match text.parse::<T>() {
        Ok(number) if allowed.contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {} to {}", allowed.start(), allowed.end())),
    }
}

/// A count of tokens, questions or rounds, more than none and few enough to be added and multiplied.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    whole(1..=16_777_216)(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_belong_to_a_range_and_are_named_where_it_is_left() {
        let parse = whole::<u16>(1..=1024);
        assert_eq!((parse("1"), parse("1024")), (Ok(1), Ok(1024)));
        for wrong in ["0", "1025", "70000", "-1", "1.0", "abc", ""] {
            assert_eq!(parse(wrong), Err("expected a whole number from 1 to 1024".to_owned()), "{wrong}");
        }
        assert_eq!(whole(0..=u64::MAX)("18446744073709551615"), Ok(u64::MAX));
        assert!(whole(0..=u64::MAX)("18446744073709551616").is_err());
    }
}
