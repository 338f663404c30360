use bytes::{Buf, Bytes, BytesMut};

use super::DEFAULT_MAX_RECORD_LEN;
use crate::{byte_search::find_byte, error::Error};

/// An incremental parser of [NDJSON](super::Ndjson): it splits the input into lines.
///
/// The input may be cut anywhere. A line ends with `\n` or `\r\n`. Blank lines and spaces before a line are heartbeats, which the parser
/// skips. The parser does not check the JSON; `Record::from_json` does.
///
/// The parser keeps at most one line. The parser fails with [`Error::is_too_long`] if a line is longer than
/// [`max_record_len`](Self::max_record_len). After a line that is too long, every later call fails too.
///
/// ```
/// use bytes::Bytes;
/// use tower_push_proto::format::NdjsonParser;
///
/// let mut parser = NdjsonParser::new();
/// let mut input = Bytes::from(" {\"data\":1}\r\n{\"da");
/// assert_eq!(parser.next_record(&mut input)?.unwrap(), "{\"data\":1}");
/// assert_eq!(parser.next_record(&mut input)?, None);
/// let mut input = Bytes::from("ta\":2}\n");
/// assert_eq!(parser.next_record(&mut input)?.unwrap(), "{\"data\":2}");
/// # Ok::<(), tower_push_proto::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct NdjsonParser {
    max_record_len: usize,
    has_failed: bool,
    /// The bytes of a line that began in an earlier piece of the input.
    partial: BytesMut,
}

impl NdjsonParser {
    /// Makes a parser for a new stream, with the default limit.
    pub fn new() -> Self {
        Self {
            max_record_len: DEFAULT_MAX_RECORD_LEN,
            has_failed: false,
            partial: BytesMut::new(),
        }
    }

    /// Sets the maximum length of a line, in bytes without its `\n`: 4 MiB by default.
    pub fn max_record_len(mut self, bytes: usize) -> Self {
        self.max_record_len = bytes;
        self
    }

    /// Reads from the front of `input` up to the end of the next line, and returns the line without its line break. Returns `None` once all
    /// of `input` is read and the line is still incomplete.
    ///
    /// A line is not copied if `input` is `Bytes` and contains the whole line.
    ///
    /// # Errors
    /// [`Error::is_too_long`] if the line is longer than the limit.
    pub fn next_record(&mut self, input: &mut impl Buf) -> Result<Option<Bytes>, Error> {
        while input.has_remaining() {
            let spaces = self.count_spaces_before_line(input.chunk());
            if spaces > 0 {
                input.advance(spaces);
                continue;
            }
            let chunk = input.chunk();
            let end = find_byte(chunk, |byte| byte == b'\n');
            let piece_len = end.unwrap_or(chunk.len());
            if self.has_failed || piece_len > self.max_record_len.saturating_sub(self.partial.len())
            {
                self.has_failed = true;
                let max_len = self.max_record_len;
                return Err(Error::too_long(format!(
                    "a line has more than {max_len} bytes"
                )));
            }
            if end.is_none() {
                self.partial.extend_from_slice(chunk);
                input.advance(piece_len);
                continue;
            }
            let mut line = if self.partial.is_empty() {
                input.copy_to_bytes(piece_len)
            } else {
                self.partial.extend_from_slice(&chunk[..piece_len]);
                input.advance(piece_len);
                self.partial.split().freeze()
            };
            input.advance(1);
            if line.ends_with(b"\r") {
                line.truncate(line.len() - 1);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Returns the number of spaces at the front of `chunk` that precede a line. Spaces within a line are not counted.
    fn count_spaces_before_line(&self, chunk: &[u8]) -> usize {
        if self.has_failed || !self.partial.is_empty() {
            return 0;
        }
        chunk.iter().take_while(|byte| **byte == b' ').count()
    }

    /// Returns the bytes after the last `\n`, unless they are blank. Call this method at the end of a body, because writers may leave out
    /// the last `\n`.
    ///
    /// If the body was cut off, the returned bytes may be an incomplete line.
    pub fn finish(mut self) -> Option<Bytes> {
        let line = self.partial.split().freeze();
        (!line.trim_ascii().is_empty()).then_some(line)
    }
}

impl Default for NdjsonParser {
    fn default() -> Self {
        Self::new()
    }
}
