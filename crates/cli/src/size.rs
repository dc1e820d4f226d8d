//! Sizes as people write them: `1500MiB`, `1.5GiB`, `1.5GB`, bare bytes.

/// Bytes of a size. Units of 1,024 have an i (KiB, MiB, GiB, TiB), units of 1,000 have none (KB, MB, GB, TB).
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let wrong = || "expected a size such as 1500MiB, 1.5GiB, 1.5GB, or a number of bytes".to_owned();
    let found = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), *bytes)));
    let (number, unit) = found.unwrap_or((text, 1));
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(wrong());
    }
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit as f64;
    // 2^63: beyond any memory, and where f64 still counts in whole pages.
    if (0.0..9.2e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Bytes a second, more than none.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("expected more than 0 bytes a second, such as 500MB".to_owned()),
        rate => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_rate};

    #[test]
    fn sizes_are_read_strictly() {
        assert_eq!(parse("1500MiB"), Ok(1500 << 20));
        assert_eq!(parse("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse("1.5GB"), Ok(1_500_000_000));
        assert_eq!(parse("1000"), Ok(1000));
        assert_eq!(parse("2 GiB"), Ok(2 << 30));
        for wrong in ["", "GiB", "-1", "1e9", "1.5.2GiB", "3G", "inf", "nan", "1_000"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse_rate("0").is_err() && parse_rate("0.5B").is_err() && parse_rate("1MB") == Ok(1_000_000));
    }
}
