//! Bytes in and out with their place and a running checksum, 64-bit FNV-1a: it finds damage and is no protection against intent.
//! No meaning is given to the bytes here.

use super::TraceError;
use fnv::FnvHasher;
use std::hash::Hasher;
use std::io::{ErrorKind, Read, Write};

/// A reader that knows where it is.
pub(super) struct Source<R> {
    reader: R,
    pub(super) offset: u64,
    pub(super) checksum: FnvHasher,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R) -> Source<R> {
        Source { reader, offset: 0, checksum: FnvHasher::default() }
    }

    /// Fills `out`; `what` is named if the trace ends before.
    pub(super) fn fill(&mut self, out: &mut [u8], what: &'static str) -> Result<(), TraceError> {
        let mut filled = 0;
        while filled < out.len() {
            match self.reader.read(&mut out[filled..]) {
                Ok(0) => return Err(TraceError::Truncated { offset: self.offset + filled as u64, what }),
                Ok(count) => filled += count,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(TraceError::Read { offset: self.offset + filled as u64, cause }),
            }
        }
        self.checksum.write(out);
        self.offset += out.len() as u64;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], TraceError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, TraceError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, TraceError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Whether nothing follows.
    pub(super) fn is_at_end(&mut self) -> Result<bool, TraceError> {
        let mut byte = [0];
        loop {
            match self.reader.read(&mut byte) {
                Ok(count) => return Ok(count == 0),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(TraceError::Read { offset: self.offset, cause }),
            }
        }
    }

    /// The error for a field of `bytes` that has just been read.
    pub(super) fn malformed(
        &self,
        bytes: u64,
        what: &'static str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> TraceError {
        let offset = self.offset.saturating_sub(bytes);
        TraceError::Malformed { offset, what, expected: expected.into(), found: found.to_string() }
    }
}

/// A writer that knows where it is.
pub(super) struct Sink<W> {
    writer: W,
    pub(super) offset: u64,
    pub(super) checksum: FnvHasher,
}

impl<W: Write> Sink<W> {
    pub(super) fn new(writer: W) -> Sink<W> {
        Sink { writer, offset: 0, checksum: FnvHasher::default() }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), TraceError> {
        self.writer.write_all(bytes).map_err(|cause| TraceError::Write { offset: self.offset, cause })?;
        self.checksum.write(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<W, TraceError> {
        self.writer.flush().map_err(|cause| TraceError::Write { offset: self.offset, cause })?;
        Ok(self.writer)
    }
}
