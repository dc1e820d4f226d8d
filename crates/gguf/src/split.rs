//! Split models, `NAME-00001-of-0000N.gguf`, as llama.cpp's gguf-split makes them: the names of the parts, and the keys
//! by which a part says where it belongs.
//!
//! | key | type | |
//! | --- | --- | --- |
//! | `split.no` | u16 | this part, from 0 |
//! | `split.count` | u16 | number of parts; 0, 1 or absent: not split |
//! | `split.tensors.count` | i32 | tensors of all parts |

use std::path::{Path, PathBuf};

use crate::{Error, Metadata, limits};

/// Key of a part's number, from 0.
pub const NUMBER_KEY: &str = "split.no";
/// Key of the number of parts.
pub const COUNT_KEY: &str = "split.count";
/// Key of the number of tensors in all parts.
pub const TENSORS_KEY: &str = "split.tensors.count";
/// What only a part says.
pub const KEYS: [&str; 3] = [NUMBER_KEY, COUNT_KEY, TENSORS_KEY];

/// The path of part `number` (from 1) of `count`: `PREFIX-00001-of-00004.gguf`.
pub fn part_path(prefix: &Path, number: u32, count: u32) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(format!("-{number:05}-of-{count:05}.gguf"));
    name.into()
}

/// The paths of all parts, if `path` is named like a part of two or more.
pub(crate) fn all_parts(path: &Path) -> Option<Vec<PathBuf>> {
    let (prefix, count) = parse(path.file_name()?.to_str()?)?;
    let prefix = path.with_file_name(prefix);
    Some((1..=count).map(|number| part_path(&prefix, number, count)).collect())
}

/// The prefix and the number of parts.
fn parse(name: &str) -> Option<(&str, u32)> {
    let five_digits = |text: &str| -> Option<u32> {
        let all = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        if all { text.parse().ok() } else { None }
    };
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let (number, count) = (five_digits(number)?, five_digits(count)?);
    ((1..=count).contains(&number) && (2..=limits::PARTS).contains(&count)).then_some((prefix, count))
}

/// Checks that a file which is opened alone is whole.
pub(crate) fn check_whole(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    let count = metadata.find::<u32>(COUNT_KEY)?.unwrap_or(0);
    if count < 2 {
        return Ok(());
    }
    let number = metadata.require::<u32>(NUMBER_KEY)?;
    let expected = format!("the name NAME-{:05}-of-{count:05}.gguf, since it is a part", u64::from(number) + 1);
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    Err(Error::Split { file: path.into(), expected, found: format!("{name:?}") })
}

/// Checks that the part with `index` (from 0) of `count` says so too.
pub(crate) fn check_part(path: &Path, metadata: &Metadata, index: usize, count: usize) -> Result<(), Error> {
    for (key, expected) in [(COUNT_KEY, count), (NUMBER_KEY, index)] {
        let found = metadata.require::<u32>(key)?;
        if found as usize != expected {
            let expected = format!("{key} {expected}, by its name");
            return Err(Error::Split { file: path.into(), expected, found: found.to_string() });
        }
    }
    Ok(())
}

/// Checks the number of tensors in all parts against what a part says.
pub(crate) fn check_tensors(path: &Path, metadata: &Metadata, tensors: usize) -> Result<(), Error> {
    let said = metadata.require::<u64>(TENSORS_KEY)?;
    if said == tensors as u64 {
        return Ok(());
    }
    let found = format!("{tensors} tensors");
    Err(Error::Split { file: path.into(), expected: format!("{TENSORS_KEY} {said} in all parts"), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let parts = all_parts(Path::new("/m/a-b-00002-of-00003.gguf")).unwrap();
        let names: Vec<_> = parts.iter().map(|part| part.to_str().unwrap()).collect();
        assert_eq!(names, ["/m/a-b-00001-of-00003.gguf", "/m/a-b-00002-of-00003.gguf", "/m/a-b-00003-of-00003.gguf"]);
        for whole in [
            "a.gguf",
            "a-00001-of-00001.gguf",
            "a-00004-of-00003.gguf",
            "a-00000-of-00003.gguf",
            "a-0001-of-00003.gguf",
            "a-+0001-of-00003.gguf",
            "a-00001-of-00003.bin",
        ] {
            assert_eq!(all_parts(Path::new(whole)), None, "{whole}");
        }
    }
}
