use bytes::{Buf, Bytes, BytesMut};

use super::{DEFAULT_MAX_RECORD_LEN, json_seq::RECORD_SEPARATOR};
use crate::error::Error;

/// An incremental parser of [JSON text sequences](super::JsonSeq) ([RFC 7464](https://www.rfc-editor.org/rfc/rfc7464)): it splits the
/// input into JSON texts.
///
/// The input may be cut anywhere. A JSON text begins after a record separator (0x1E) and ends with the first line feed that is outside of
/// its strings, arrays and objects. The parser returns the JSON text without the line feed, as soon as it has read the line feed. A record
/// separator without a JSON text is a heartbeat, which the parser skips. The parser does not check the JSON; `Record::from_json` does.
///
/// A complete object, array or string may also end with the record separator of the next text ([RFC 7464
/// §2.4](https://www.rfc-editor.org/rfc/rfc7464#section-2.4)). Any other JSON text that contains a record separator was cut off there: the
/// parser fails with [`Error::is_malformed`], and continues after the separator when it is called again.
///
/// The parser keeps at most one JSON text. The parser fails with [`Error::is_too_long`] if a JSON text is longer than
/// [`max_record_len`](Self::max_record_len). After a JSON text that is too long, every later call fails too.
///
/// ```
/// use bytes::Bytes;
/// use tower_push_proto::format::JsonSeqParser;
///
/// let mut parser = JsonSeqParser::new();
/// let mut input = Bytes::from("\x1e\x1e{\n\"data\":1}\n\x1e{\"da\x1e2\n");
/// assert_eq!(parser.next_record(&mut input)?.unwrap(), "{\n\"data\":1}");
/// assert!(parser.next_record(&mut input).unwrap_err().is_malformed());
/// assert_eq!(parser.next_record(&mut input)?.unwrap(), "2");
/// # Ok::<(), tower_push_proto::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct JsonSeqParser {
    max_record_len: usize,
    has_failed: bool,
    position: SequencePosition,
    /// The bytes of a JSON text that began in an earlier piece of the input.
    partial: BytesMut,
}

/// The position of the next byte in a JSON text sequence.
#[derive(Clone, Copy, Debug)]
enum SequencePosition {
    /// Between JSON texts, before a record separator.
    Between,
    /// After a record separator, before the JSON text.
    AfterSeparator,
    /// In a JSON text, outside of strings, within `depth` arrays and objects.
    Text { depth: usize },
    /// In a string of a JSON text.
    String { depth: usize },
    /// After a backslash in a string of a JSON text.
    Escape { depth: usize },
}

/// The role of a byte in a JSON text sequence.
enum ByteRole {
    /// A record separator or white space between JSON texts.
    Outside,
    /// A byte of a JSON text.
    Inside,
    /// The line feed after a JSON text.
    End,
    /// The record separator of the next JSON text, within or directly after a JSON text. `depth` is the number of arrays and objects that
    /// are open at the separator; `None` if a string is open.
    NextSeparator { depth: Option<usize> },
    /// A byte, other than white space, that no record separator precedes.
    Stray,
}

impl SequencePosition {
    /// Moves the position past `byte`, and returns the byte's role.
    fn advance(&mut self, byte: u8) -> ByteRole {
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        *self = match (*self, byte) {
            (Self::Between | Self::AfterSeparator, RECORD_SEPARATOR) => {
                *self = Self::AfterSeparator;
                return ByteRole::Outside;
            }
            (Self::Between | Self::AfterSeparator, _) if is_space => return ByteRole::Outside,
            (Self::Between, _) => return ByteRole::Stray,
            (text, RECORD_SEPARATOR) => {
                *self = Self::AfterSeparator;
                let depth = match text {
                    Self::Text { depth } => Some(depth),
                    _ => None,
                };
                return ByteRole::NextSeparator { depth };
            }
            (Self::Text { depth: 0 }, b'\n') => {
                *self = Self::Between;
                return ByteRole::End;
            }
            (Self::AfterSeparator, b'"') => Self::String { depth: 0 },
            (Self::AfterSeparator, b'{' | b'[') => Self::Text { depth: 1 },
            (Self::AfterSeparator, _) => Self::Text { depth: 0 },
            (Self::Text { depth }, b'"') => Self::String { depth },
            (Self::Text { depth }, b'{' | b'[') => Self::Text { depth: depth + 1 },
            (Self::Text { depth }, b'}' | b']') => Self::Text {
                depth: depth.saturating_sub(1),
            },
            (Self::String { depth }, b'\\') => Self::Escape { depth },
            (Self::String { depth }, b'"') => Self::Text { depth },
            (Self::Escape { depth }, _) => Self::String { depth },
            (unchanged @ (Self::Text { .. } | Self::String { .. }), _) => unchanged,
        };
        ByteRole::Inside
    }
}

impl JsonSeqParser {
    /// Makes a parser for a new stream, with the default limit.
    pub fn new() -> Self {
        Self {
            max_record_len: DEFAULT_MAX_RECORD_LEN,
            has_failed: false,
            position: SequencePosition::Between,
            partial: BytesMut::new(),
        }
    }

    /// Sets the maximum length of a JSON text, in bytes: 4 MiB by default.
    pub fn max_record_len(mut self, bytes: usize) -> Self {
        self.max_record_len = bytes;
        self
    }

    /// Reads from the front of `input` up to the end of the next JSON text, and returns the text. Returns `None` once all of `input` is
    /// read and the text is still incomplete.
    ///
    /// A JSON text is not copied if `input` is `Bytes` and contains the whole text.
    ///
    /// # Errors
    /// [`Error::is_too_long`] if a JSON text is longer than the limit. [`Error::is_malformed`] if a JSON text was cut off, or if anything
    /// but white space precedes a record separator.
    pub fn next_record(&mut self, input: &mut impl Buf) -> Result<Option<Bytes>, Error> {
        if self.has_failed {
            return Err(self.too_long());
        }
        while input.has_remaining() {
            let chunk = input.chunk();
            // The index in the chunk at which the JSON text begins, or 0 if the text began in an earlier chunk.
            let mut start = if self.is_within_record() {
                0
            } else {
                chunk.len()
            };
            let mut end = None;
            let mut is_cut_off = false;
            for (index, byte) in chunk.iter().enumerate() {
                match self.position.advance(*byte) {
                    ByteRole::Outside => {}
                    ByteRole::Inside => start = start.min(index),
                    ByteRole::End => {
                        end = Some(index);
                        break;
                    }
                    ByteRole::NextSeparator { depth } => {
                        end = Some(index);
                        is_cut_off =
                            depth != Some(0) || !self.ends_with_closing_byte(&chunk[start..index]);
                        break;
                    }
                    ByteRole::Stray => {
                        input.advance(index + 1);
                        return Err(Error::malformed("a JSON text has no record separator"));
                    }
                }
            }
            let piece_len = end.unwrap_or(chunk.len()) - start;
            if self.partial.len() + piece_len > self.max_record_len {
                self.has_failed = true;
                return Err(self.too_long());
            }
            let Some(end) = end else {
                self.partial.extend_from_slice(&chunk[start..]);
                let len = chunk.len();
                input.advance(len);
                continue;
            };
            let text = if self.partial.is_empty() {
                input.advance(start);
                input.copy_to_bytes(piece_len)
            } else {
                self.partial.extend_from_slice(&chunk[start..end]);
                input.advance(end);
                self.partial.split().freeze()
            };
            input.advance(1);
            if is_cut_off {
                return Err(Error::malformed("a JSON text was cut off"));
            }
            return Ok(Some(text));
        }
        Ok(None)
    }

    /// Whether a JSON text has begun and not ended. `true` at the end of a body means that the JSON text was cut off.
    pub fn is_within_record(&self) -> bool {
        !matches!(
            self.position,
            SequencePosition::Between | SequencePosition::AfterSeparator
        )
    }

    /// Whether the text whose last bytes are `last_piece` ends with the closing byte of an object, an array or a string: `}`, `]` or `"`.
    /// A number or a literal has no closing byte: white space must follow it, because a cut number may look complete.
    fn ends_with_closing_byte(&self, last_piece: &[u8]) -> bool {
        let mut bytes = last_piece.iter().rev().chain(self.partial.iter().rev());
        let last = bytes.find(|byte| !byte.is_ascii_whitespace());
        last.is_some_and(|byte| matches!(byte, b'}' | b']' | b'"'))
    }

    fn too_long(&self) -> Error {
        let max_len = self.max_record_len;
        Error::too_long(format!("a JSON text has more than {max_len} bytes"))
    }
}

impl Default for JsonSeqParser {
    fn default() -> Self {
        Self::new()
    }
}
