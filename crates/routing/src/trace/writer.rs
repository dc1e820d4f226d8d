//! Writes a trace as it is recorded: the header, token after token, and the end that makes it whole.

use super::stream::Sink;
use super::{
    END, GENERATED, NO_EXPERT, NO_TOKEN, Precision, STARTS_SEQUENCE, STARTS_WINDOW, TextStart, TraceError, TraceHeader,
    TraceToken,
};
use crate::Phase;
use half::f16;
use std::hash::Hasher;
use std::io::Write;

/// Writes a trace; it is whole after [`TraceWriter::finish`].
pub struct TraceWriter<W> {
    sink: Sink<W>,
    header: TraceHeader,
    tokens: u64,
    /// A token's bytes.
    row: Vec<u8>,
}

impl<W: Write> TraceWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// The header is no trace's, or the writer fails.
    pub fn new(writer: W, header: TraceHeader) -> Result<TraceWriter<W>, TraceError> {
        let mut sink = Sink::new(writer);
        header.write(&mut sink)?;
        Ok(TraceWriter { sink, row: Vec::with_capacity(header.token_bytes() as usize), header, tokens: 0 })
    }

    /// What was written at the start.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Writes a token.
    ///
    /// # Errors
    /// It is one of another trace, a score is not finite or too large for half precision, or the writer fails.
    pub fn write(&mut self, token: &TraceToken) -> Result<(), TraceError> {
        let shape = self.header.shape();
        if token.shape != shape || token.scores.is_empty() != self.header.scores.is_none() {
            let (expected, found) = (format!("{shape:?}"), format!("{:?}", token.shape));
            return Err(TraceError::Unwritable { what: "a token", expected, found });
        }
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(token.phase == Phase::Generation, GENERATED)
            | flag(token.start == Some(TextStart::Sequence), STARTS_SEQUENCE)
            | flag(token.start == Some(TextStart::Window), STARTS_WINDOW);
        self.row.clear();
        self.row.extend(flags.to_le_bytes());
        self.row.extend(token.id.unwrap_or(NO_TOKEN).to_le_bytes());
        for layer in 0..shape.layers {
            let selection = token.selection(layer).map(|id| id as u16).chain(std::iter::repeat(NO_EXPERT));
            self.row.extend(selection.take(shape.per_token).flat_map(u16::to_le_bytes));
            match self.header.scores.map(|scores| scores.precision) {
                None => {}
                Some(Precision::F32) => self.row.extend(token.scores(layer).iter().copied().flat_map(f32::to_le_bytes)),
                Some(Precision::F16) => {
                    let halves = token.scores(layer).iter().map(|&score| f16::from_f32(score));
                    self.row.extend(halves.flat_map(f16::to_le_bytes));
                }
            }
            let stored = |score: &&f32| match self.header.scores.map(|scores| scores.precision) {
                Some(Precision::F16) => f16::from_f32(**score).is_finite(),
                _ => score.is_finite(),
            };
            if let Some(score) = token.scores(layer).iter().find(|score| !stored(score)) {
                let (expected, found) = ("a finite number in the trace's precision".to_owned(), score.to_string());
                return Err(TraceError::Unwritable { what: "a score", expected, found });
            }
        }
        self.sink.put(&self.row)?;
        self.tokens += 1;
        Ok(())
    }

    /// Writes the end and gives the writer back, flushed.
    ///
    /// # Errors
    /// The writer fails.
    pub fn finish(mut self) -> Result<W, TraceError> {
        self.sink.put(&END.to_le_bytes())?;
        self.sink.put(&0u32.to_le_bytes())?;
        self.sink.put(&self.tokens.to_le_bytes())?;
        let checksum = self.sink.checksum.finish();
        self.sink.put(&checksum.to_le_bytes())?;
        self.sink.finish()
    }
}
