//! Reads a header front to back. Every length is compared with the bytes that remain before it is used or allocated.
//!
//! "Remain" means up to the end of the file or of [`limits::HEADER_BYTES`], whichever comes first, so that a huge sparse
//! file cannot ask for huge strings.

use std::fmt::Display;

use crate::{Error, Part, limits};

/// Bytes fetched at a time.
const BUFFER_BYTES: usize = 64 << 10;
/// How many characters of a name messages show; names have up to [`limits::NAME_BYTES`].
const SHOWN: usize = 100;

/// As much of a name as messages show.
pub(crate) fn beginning(name: &str) -> String {
    name.chars().take(SHOWN).collect()
}

pub(crate) struct Cursor<'a> {
    part: &'a Part,
    /// Where the next byte is in the file.
    position: u64,
    end: u64,
    buffer: Vec<u8>,
    /// How much of `buffer` was taken.
    taken: usize,
    /// What is being read, for messages: a key, a tensor.
    subject: String,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(part: &'a Part) -> Cursor<'a> {
        let end = part.bytes().min(limits::HEADER_BYTES);
        Cursor { part, position: 0, end, buffer: Vec::new(), taken: 0, subject: "header".into() }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Says that the key or tensor `number` (from 0) is read, whose name is not known yet.
    pub(crate) fn enter(&mut self, kind: &str, number: usize) {
        self.subject = format!("{kind} {number}");
    }

    /// Says that the key or tensor `name` is read; a name may be long, so its beginning has to do.
    pub(crate) fn enter_named(&mut self, kind: &str, name: &str) {
        self.subject = format!("{kind} {:?}", beginning(name));
    }

    /// An error at `offset` about field `what` of the subject.
    pub(crate) fn malformed(&self, offset: u64, what: &str, expected: impl Display, found: impl Display) -> Error {
        Error::Malformed {
            file: self.part.path().into(),
            offset,
            what: format!("{}: {what}", self.subject),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Checks that `count` things of at least `least_bytes` each can follow; gives `count` as usize.
    pub(crate) fn check_count(&self, offset: u64, what: &str, count: u64, least_bytes: u64) -> Result<usize, Error> {
        let remaining = self.end - self.position;
        let most = remaining / least_bytes;
        match usize::try_from(count) {
            Ok(fits) if count <= most => Ok(fits),
            _ => {
                let (limit, advice) = if self.end < self.part.bytes() {
                    ("the header's limit", "")
                } else {
                    ("the file", "; the file is cut off or damaged: download it again")
                };
                let expected =
                    format!("at most {most} (least size {least_bytes}, {remaining} bytes remain in {limit})");
                Err(self.malformed(offset, what, expected, format_args!("{count}{advice}")))
            }
        }
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.number(what, u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.number(what, u64::from_le_bytes)
    }

    pub(crate) fn number<const N: usize, T>(&mut self, what: &str, convert: fn([u8; N]) -> T) -> Result<T, Error> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(convert(bytes))
    }

    /// `count` numbers; `count` has been checked.
    pub(crate) fn numbers<const N: usize, T>(
        &mut self,
        count: usize,
        convert: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Error> {
        let mut numbers = Vec::with_capacity(count);
        for _ in 0..count {
            numbers.push(self.number("array element", convert)?);
        }
        Ok(numbers)
    }

    /// A string: length as u64, then bytes, put into `out` in place of what is there.
    pub(crate) fn string(&mut self, what: &str, most_bytes: u64, out: &mut Vec<u8>) -> Result<(), Error> {
        let offset = self.position;
        let length = self.u64(what)?;
        if length > most_bytes {
            return Err(self.malformed(offset, what, format_args!("at most {most_bytes} bytes"), length));
        }
        let length = self.check_count(offset, what, length, 1)?;
        out.clear();
        out.resize(length, 0);
        self.fill(what, out)
    }

    /// A name: a string that is not empty, not too long, and UTF-8.
    pub(crate) fn name(&mut self, what: &str) -> Result<String, Error> {
        let offset = self.position;
        let mut bytes = Vec::new();
        self.string(what, limits::NAME_BYTES, &mut bytes)?;
        if bytes.is_empty() {
            return Err(self.malformed(offset, what, "at least one byte", "none"));
        }
        String::from_utf8(bytes).map_err(|error| {
            let shown = &error.as_bytes()[..error.as_bytes().len().min(SHOWN)];
            self.malformed(offset, what, "UTF-8", format_args!("\"{}\"", shown.escape_ascii()))
        })
    }

    fn fill(&mut self, what: &str, out: &mut [u8]) -> Result<(), Error> {
        let remaining = self.end - self.position;
        if out.len() as u64 > remaining {
            return Err(self.malformed(
                self.position,
                what,
                format_args!("{} bytes", out.len()),
                format_args!(
                    "{remaining}, then the end of {}",
                    if self.end < self.part.bytes() {
                        "what a header may have"
                    } else {
                        "the file; it is cut off: download it again"
                    }
                ),
            ));
        }
        let mut filled = 0;
        while filled < out.len() {
            if self.taken == self.buffer.len() {
                let bytes = (self.end - self.position).min(BUFFER_BYTES as u64) as usize;
                self.buffer.resize(bytes, 0);
                self.part.read_at(self.position, &mut self.buffer)?;
                self.taken = 0;
            }
            let count = (out.len() - filled).min(self.buffer.len() - self.taken);
            out[filled..filled + count].copy_from_slice(&self.buffer[self.taken..self.taken + count]);
            self.taken += count;
            self.position += count as u64;
            filled += count;
        }
        Ok(())
    }
}
