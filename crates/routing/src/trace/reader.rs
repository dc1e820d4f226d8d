//! Reads a trace token by token and checks everything on the way, the end included.

use super::stream::Source;
use super::{
    END, GENERATED, NO_EXPERT, NO_TOKEN, Precision, STARTS_SEQUENCE, STARTS_WINDOW, TextStart, TraceError, TraceHeader,
    TraceToken,
};
use crate::Phase;
use half::f16;
use std::hash::Hasher;
use std::io::Read;

/// Reads a trace. It reads in small pieces: give it a buffered reader.
pub struct TraceReader<R> {
    source: Source<R>,
    header: TraceHeader,
    tokens: u64,
    ended: bool,
    /// A layer's bytes: at most 256 KiB.
    row: Vec<u8>,
    token: TraceToken,
}

impl<R: Read> TraceReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// The bytes are no trace, or of another version, or damaged, or the reader fails.
    pub fn new(reader: R) -> Result<TraceReader<R>, TraceError> {
        let mut source = Source::new(reader);
        let header = TraceHeader::read(&mut source)?;
        let row_bytes = (header.token_bytes() - 8) as usize / header.layers.len();
        let token = TraceToken::empty(&header);
        Ok(TraceReader { source, header, tokens: 0, ended: false, row: vec![0; row_bytes], token })
    }

    /// What the trace is about.
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// Tokens read so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Bytes read so far: of the whole trace after its last token.
    pub fn bytes(&self) -> u64 {
        self.source.offset
    }

    /// Reads the next token; `None` after the last, when the whole trace has been checked.
    ///
    /// # Errors
    /// The trace is damaged or cut off, or the reader fails.
    pub fn next_token(&mut self) -> Result<Option<&TraceToken>, TraceError> {
        if self.ended {
            return Ok(None);
        }
        let flags = self.source.u32("the flags of a token, or the end")?;
        if flags == END {
            self.end()?;
            self.ended = true;
            return Ok(None);
        }
        if flags & !(GENERATED | STARTS_SEQUENCE | STARTS_WINDOW) != 0 {
            return Err(self.source.malformed(4, "flags of a token", "0 to 7", flags));
        }
        self.token.phase = if flags & GENERATED == 0 { Phase::Prompt } else { Phase::Generation };
        // Both: a sequence, of which its first window is a part.
        self.token.start = match (flags & STARTS_SEQUENCE != 0, flags & STARTS_WINDOW != 0) {
            (true, _) => Some(TextStart::Sequence),
            (false, true) => Some(TextStart::Window),
            (false, false) => None,
        };
        self.token.id = Some(self.source.u32("a token's id")?).filter(|&id| id != NO_TOKEN);
        // Both grow layer by layer, as the bytes come.
        self.token.selections.clear();
        self.token.scores.clear();
        for _ in 0..self.header.layers.len() {
            self.layer()?;
        }
        self.tokens += 1;
        Ok(Some(&self.token))
    }

    fn layer(&mut self) -> Result<(), TraceError> {
        let token = &mut self.token;
        let (experts, per_token) = (self.header.experts, self.header.experts_per_token);
        self.source.fill(&mut self.row, "a token")?;
        let (selection, scores) = self.row.split_at(2 * per_token);
        let first = token.selections.len();
        for id in selection.chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])) {
            let chosen = &token.selections[first..];
            let follows_none = chosen.last() == Some(&NO_EXPERT);
            if id != NO_EXPERT && (id as usize >= experts || follows_none || chosen.contains(&id)) {
                let expected = format!("different experts of {experts}, {NO_EXPERT} behind the last");
                return Err(self.source.malformed(self.row.len() as u64, "a selection", expected, id));
            }
            token.selections.push(id);
        }
        let start = token.scores.len();
        match self.header.scores.map(|scores| scores.precision) {
            None => {}
            Some(Precision::F32) => {
                let floats = scores.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                token.scores.extend(floats);
            }
            Some(Precision::F16) => {
                let halves = scores.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32());
                token.scores.extend(halves);
            }
        }
        match token.scores[start..].iter().find(|score| !score.is_finite()) {
            Some(score) => Err(self.source.malformed(scores.len() as u64, "a score", "a finite number", score)),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), TraceError> {
        const WHAT: &str = "the end";
        let zero = self.source.u32(WHAT)?;
        if zero != 0 {
            return Err(self.source.malformed(4, WHAT, "0", zero));
        }
        let tokens = self.source.u64(WHAT)?;
        if tokens != self.tokens {
            return Err(self.source.malformed(8, "the number of tokens", self.tokens.to_string(), tokens));
        }
        let expected = self.source.checksum.finish();
        let checksum = self.source.u64(WHAT)?;
        if checksum != expected {
            return Err(self.source.malformed(
                8,
                "the checksum",
                format!("{expected:016x}"),
                format!("{checksum:016x}"),
            ));
        }
        if self.source.is_at_end()? { Ok(()) } else { Err(self.source.malformed(0, WHAT, "nothing behind it", "more")) }
    }
}
