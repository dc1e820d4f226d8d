//! Grids of routing policies: `cache-prior:lambda=0..1/20;max-rank:m=4|6|8` is a list of policies.
//!
//! Specifications are separated by `;`. A parameter may be a list `a|b|c`, or a range `from..to/steps` of `steps + 1` values at equal
//! distances, both ends included. Several such parameters make every combination, the last one varying fastest.

use crate::Error;
use moce_engine::routing::Policy;

/// Most policies of a grid: beyond that it is a slip of the pen.
const MOST: usize = 10_000;

/// The policies of a grid, in order, each once. `read` reads the files that parameters may name.
///
/// # Errors
/// A specification, a list or a range is malformed, or there are too many policies.
pub fn parse_grid(grid: &str, read: impl Fn(&str) -> Result<String, String>) -> Result<Vec<Policy>, Error> {
    let wrong = |part: &str, why: String| Error::Grid { part: part.to_owned(), why };
    let mut policies: Vec<Policy> = Vec::new();
    for part in grid.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        for specification in combinations(part).map_err(|why| wrong(part, why))? {
            let policy = Policy::parse(&specification, &read).map_err(|error| wrong(part, error.to_string()))?;
            if !policies.contains(&policy) {
                policies.push(policy);
            }
            if policies.len() > MOST {
                return Err(wrong(part, format!("more than {MOST} policies")));
            }
        }
    }
    if policies.is_empty() { Err(wrong(grid, "no policy in it".to_owned())) } else { Ok(policies) }
}

/// Every specification that one with lists and ranges stands for.
fn combinations(part: &str) -> Result<Vec<String>, String> {
    let Some((name, parameters)) = part.split_once(':') else { return Ok(vec![part.to_owned()]) };
    let mut all = vec![format!("{name}:")];
    for (index, parameter) in parameters.split(',').enumerate() {
        let (key, value) = parameter.split_once('=').ok_or_else(|| format!("{parameter} is no key=value"))?;
        let values = values(value.trim())?;
        if all.len() * values.len() > MOST {
            return Err(format!("more than {MOST} policies"));
        }
        let comma = if index > 0 { "," } else { "" };
        let extend = |before: &String| -> Vec<String> {
            values.iter().map(|value| format!("{before}{comma}{}={value}", key.trim())).collect()
        };
        all = all.iter().flat_map(extend).collect();
    }
    Ok(all)
}

/// The values of a parameter.
fn values(text: &str) -> Result<Vec<String>, String> {
    // A path may have both, too: `../lambdas.txt`.
    let is_range = |text: &str| text.split_once("..").is_some_and(|(from, _)| !from.is_empty() && !from.contains('/'));
    let Some((range, steps)) = text.split_once('/').filter(|_| is_range(text)) else {
        let listed: Vec<String> = text.split('|').map(|value| value.trim().to_owned()).collect();
        // A file's name may have two dots, too: `lambdas..txt`.
        let lacks_steps =
            |value: &str| value.split_once("..").is_some_and(|(from, _)| from.trim().parse::<f64>().is_ok());
        return match listed.iter().find(|value| lacks_steps(value)) {
            Some(value) => Err(format!("{value} has no steps; a range is from..to/steps, such as 0..0.25/5")),
            None => Ok(listed),
        };
    };
    let wrong = || format!("{text} is no range; from..to/steps is one, such as 0..1/20");
    let (from, to) = range.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(wrong);
    let (from, to) = (number(from)?, number(to)?);
    let steps = steps.trim().parse::<usize>().ok().filter(|steps| (1..=MOST).contains(steps)).ok_or_else(wrong)?;
    let value = |step: usize| from + (to - from) * step as f64 / steps as f64;
    // A millionth is finer than any parameter is felt, and keeps 0.15000000000000002 out of names.
    Ok((0..=steps).map(|step| format!("{}", (value(step) * 1e6).round() / 1e6)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(text: &str) -> Vec<String> {
        let policies = parse_grid(text, |path| Err(format!("no file {path}"))).unwrap();
        policies.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_have_both_ends() {
        let names = grid("cache-prior:lambda=0..0.3/3");
        assert_eq!(names.len(), 4);
        assert!(names[0].contains("lambda=0") && names[3].contains("lambda=0.3"), "{names:?}");
        assert!(names[2].contains("lambda=0.2") && !names[2].contains("0.20000"), "{names:?}");
        assert_eq!(grid("max-rank:m=4..8/2").len(), 3);
    }

    #[test]
    fn a_path_is_no_range() {
        for path in ["../lambdas.txt", "a/../b.txt", "lambdas..txt"] {
            let policies = parse_grid(&format!("cache-prior:lambda={path}"), |read| {
                assert_eq!(read, path);
                Ok("0.1 0.2".to_owned())
            });
            assert_eq!(policies.unwrap().len(), 1);
        }
    }

    #[test]
    fn a_range_without_steps_is_refused_with_one_that_has_them() {
        for (wrong, value) in [
            ("cache-prior:lambda=0..0.25", "0..0.25"),
            ("cache-prior:lambda=0.5|0..1,j=2", "0..1"),
            ("max-rank:m=4..", "4.."),
        ] {
            let error = parse_grid(wrong, |path| Err(format!("no file {path}"))).unwrap_err().to_string();
            let expected = format!("{value} has no steps; a range is from..to/steps, such as 0..0.25/5");
            assert!(error.ends_with(&expected), "{error}");
        }
    }

    #[test]
    fn lists_and_ranges_make_every_combination_and_nothing_comes_twice() {
        assert_eq!(grid("cache-prior:lambda=0.1|0.2,j=0|1|2").len(), 6);
        assert_eq!(grid("original; original ;prune:k=2;exact").len(), 2);
    }

    #[test]
    fn what_is_no_grid_is_named() {
        for wrong in [
            "",
            "no-such",
            "cache-prior:lambda",
            "cache-prior:lambda=0..1/0",
            "cache-prior:lambda=a..1/3",
            "cache-prior:lambda=0..1/99999",
        ] {
            let error = parse_grid(wrong, |path| Err(format!("no file {path}"))).unwrap_err().to_string();
            assert!(error.starts_with(&format!("routing grid '{}': ", wrong.trim_matches(';'))), "{error}");
        }
    }
}
