use std::time::Duration;

use bytes::Buf;

use crate::{byte_search::find_byte, decimal, error::Error};

/// An incremental parser of event streams, as [WHATWG HTML
/// §9.2.6](https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation) specifies it.
///
/// The input may be cut anywhere. A line ends with `\n`, `\r\n` or `\r`, and an event with an empty line. The parser returns an event as
/// soon as it has read this empty line. An event that is incomplete at the end of the stream is dropped, as the standard requires.
///
/// # Limits
/// The parser keeps at most one line and the data of one event. The parser fails with [`Error::is_too_long`] if a line is longer than
/// [`max_line_len`](Self::max_line_len), or an event's data is longer than [`max_event_len`](Self::max_event_len). After a line or an event
/// that is too long, every later call fails too. Comments have no limit, because the parser does not keep them.
///
/// ```
/// use tower_push_proto::sse::SseParser;
///
/// let mut parser = SseParser::new();
/// let mut input = &b":\nid: 7\nevent: price\ndata: 21.5\n\ndata: cut of"[..];
/// let event = parser.next_event(&mut input)?.unwrap();
/// assert_eq!(event.event_type.as_deref(), Some("price"));
/// assert_eq!(event.data, "21.5");
/// assert_eq!(parser.last_event_id(), "7");
/// assert!(parser.next_event(&mut input)?.is_none());
/// # Ok::<(), tower_push_proto::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct SseParser {
    max_line_len: usize,
    max_event_len: usize,
    has_failed: bool,
    line: PartialLine,
    event: PartialEvent,
    last_event_id: String,
    retry: Option<Duration>,
}

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// An event that an [`SseParser`] has read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SseEvent {
    /// The event's type. `None` if the event has no type or an empty one. An `EventSource` dispatches such an event as `message`.
    pub event_type: Option<String>,
    /// The value of the event's own `id` field, which may be empty. `None` if the event has no such field, so that the [last event
    /// ID](SseParser::last_event_id) comes from an earlier event.
    pub id: Option<String>,
    /// The value of the event's `event_id` field, which is not in the standard: the event's id if the `id` field is another cursor. Empty if the
    /// event has no id, although it has an `id` field. `None` if the event has no such field.
    pub event_id: Option<String>,
    /// The value of the event's `topic` field, which is not in the standard. `None` if the event has no such field.
    pub topic: Option<String>,
    /// The value of the event's `topics` field, which is not in the standard: all topics of an event that has several, separated by tabs. `None`
    /// if the event has no such field.
    pub topics: Option<String>,
    /// The data. The lines of the data are joined with `\n`.
    pub data: String,
}

/// A line that has begun and not ended, and the state of line parsing.
#[derive(Debug, Default)]
struct PartialLine {
    /// The bytes of a line that began in an earlier chunk of the input.
    bytes: Vec<u8>,
    /// Whether the line is a comment. The bytes of a comment are not kept.
    is_comment: bool,
    /// Whether the last byte was a carriage return. A line feed after the carriage return belongs to the same line ending.
    follows_cr: bool,
    /// The number of bytes of the byte order mark that the stream has begun with; all of them once the stream is past the mark.
    mark_position: usize,
}

/// The fields of an event that has begun and not ended. The standard calls these fields buffers.
#[derive(Debug, Default)]
struct PartialEvent {
    event_type: String,
    event_id: Option<String>,
    topic: Option<String>,
    topics: Option<String>,
    /// The last event ID buffer. Events without an `id` field inherit this id.
    id: String,
    has_id: bool,
    data: String,
    has_data: bool,
}

/// The result of [`SseParser::read_chunk`]: the part of the chunk that was read.
struct ChunkReadOutcome {
    /// The number of bytes that were read.
    len: usize,
    /// The event that ends with these bytes. `None` if the whole chunk was read, and the event is still incomplete.
    event: Option<SseEvent>,
}

impl PartialLine {
    /// Returns `chunk` without the byte order mark that the stream may begin with. The mark may be cut anywhere.
    fn skip_byte_order_mark<'a>(&mut self, mut chunk: &'a [u8]) -> &'a [u8] {
        while let (Some(expected), [first, rest @ ..]) =
            (BYTE_ORDER_MARK.get(self.mark_position), chunk)
        {
            if first == expected {
                self.mark_position += 1;
                chunk = rest;
            } else {
                // The bytes so far are no mark: they begin the first line.
                let begun = &BYTE_ORDER_MARK[..self.mark_position];
                self.bytes.extend_from_slice(begun);
                self.mark_position = BYTE_ORDER_MARK.len();
            }
        }
        chunk
    }
}

impl SseParser {
    /// Makes a parser for a new stream, with the default limits.
    pub fn new() -> Self {
        Self {
            max_line_len: 1024 * 1024,
            max_event_len: 4 * 1024 * 1024,
            has_failed: false,
            line: PartialLine::default(),
            event: PartialEvent::default(),
            last_event_id: String::new(),
            retry: None,
        }
    }

    /// Sets the maximum length of a line, in bytes without its line break: 1 MiB by default.
    pub fn max_line_len(mut self, bytes: usize) -> Self {
        self.max_line_len = bytes;
        self
    }

    /// Sets the maximum length of an event's data, in bytes: 4 MiB by default.
    pub fn max_event_len(mut self, bytes: usize) -> Self {
        self.max_event_len = bytes;
        self
    }

    /// Begins a new stream, after a client has reconnected. The parser drops a line and an event that are incomplete. It keeps the
    /// [reconnection time](Self::retry), and it keeps the [last event ID](Self::last_event_id) until the first event of the new stream ends.
    pub fn restart(&mut self) {
        self.has_failed = false;
        self.line = PartialLine::default();
        self.event = PartialEvent::default();
    }

    /// Returns the last event ID: the cursor that an `EventSource` sends as `Last-Event-ID` when it reconnects. The last event ID is empty
    /// if no `id` field has been read.
    ///
    /// The last event ID changes at the empty line after an `id` field, even if the event has no data and is therefore not returned.
    ///
    /// As the standard requires, the first empty line after a [`restart`](Self::restart) clears the last event ID, unless an `id` field
    /// precedes it. Servers of tower-push therefore repeat the client's cursor at the beginning of each stream.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// Returns the reconnection time that the last valid `retry` field asks for. Returns `None` if the stream has had no such field.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Reads from the front of `input` up to the end of the next event. Returns `None` once all of `input` is read and the event is still
    /// incomplete.
    ///
    /// # Errors
    /// [`Error::is_too_long`] if a line or an event is longer than its limit.
    pub fn next_event(&mut self, input: &mut impl Buf) -> Result<Option<SseEvent>, Error> {
        while input.has_remaining() {
            let read = self.read_chunk(input.chunk())?;
            input.advance(read.len);
            if read.event.is_some() {
                return Ok(read.event);
            }
        }
        Ok(None)
    }

    /// Reads `chunk` up to the end of the next event.
    fn read_chunk(&mut self, chunk: &[u8]) -> Result<ChunkReadOutcome, Error> {
        if self.has_failed {
            return Err(Error::too_long(
                "this event stream had too long a line or event",
            ));
        }
        let result = self.read_lines(chunk);
        self.has_failed = result.is_err();
        result
    }

    fn read_lines(&mut self, chunk: &[u8]) -> Result<ChunkReadOutcome, Error> {
        let mut rest = self.line.skip_byte_order_mark(chunk);
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.line.follows_cr) && *first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(end) = find_byte(rest, |byte| byte == b'\n' || byte == b'\r') else {
                self.keep_partial(rest)?;
                break;
            };
            let (line, ending) = rest.split_at(end);
            self.line.follows_cr = ending[0] == b'\r';
            rest = &ending[1..];
            if let Some(event) = self.end_line(line)? {
                return Ok(ChunkReadOutcome {
                    len: chunk.len() - rest.len(),
                    event: Some(event),
                });
            }
        }
        Ok(ChunkReadOutcome {
            len: chunk.len(),
            event: None,
        })
    }

    /// Stores `piece` as a part of an incomplete line, unless the line is a comment.
    fn keep_partial(&mut self, piece: &[u8]) -> Result<(), Error> {
        let line = &mut self.line;
        line.is_comment |= line.bytes.is_empty() && piece.starts_with(b":");
        if line.is_comment {
            return Ok(());
        }
        if piece.len() > self.max_line_len.saturating_sub(line.bytes.len()) {
            return Err(line_too_long(self.max_line_len));
        }
        line.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Processes the line that `last_piece` completes. `line.bytes` holds the earlier bytes of the line.
    fn end_line(&mut self, last_piece: &[u8]) -> Result<Option<SseEvent>, Error> {
        if !self.line.is_comment && self.line.bytes.is_empty() {
            return self.process_line(last_piece);
        }
        self.keep_partial(last_piece)?;
        if std::mem::take(&mut self.line.is_comment) {
            return Ok(None);
        }
        let mut line = std::mem::take(&mut self.line.bytes);
        let event = self.process_line(&line);
        line.clear();
        self.line.bytes = line;
        event
    }

    /// Processes a complete line. `line` does not include the line break. Returns an event if the line ends an event.
    fn process_line(&mut self, line: &[u8]) -> Result<Option<SseEvent>, Error> {
        let colon = match find_byte(line, |byte| byte == b':') {
            None if line.is_empty() => return Ok(self.end_event()),
            Some(0) => return Ok(None),
            colon => colon.unwrap_or(line.len()),
        };
        if line.len() > self.max_line_len {
            return Err(line_too_long(self.max_line_len));
        }
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => self.event.push_data(value, self.max_event_len)?,
            b"event" => set_utf8_lossy(&mut self.event.event_type, value),
            b"id" if !value.contains(&0) => {
                set_utf8_lossy(&mut self.event.id, value);
                self.event.has_id = true;
            }
            b"event_id" => set_utf8_lossy(self.event.event_id.get_or_insert_default(), value),
            b"topic" => set_utf8_lossy(self.event.topic.get_or_insert_default(), value),
            b"topics" => set_utf8_lossy(self.event.topics.get_or_insert_default(), value),
            b"retry" => {
                let retry = decimal::parse_saturating(value).map(Duration::from_millis);
                self.retry = retry.or(self.retry);
            }
            _ => {}
        }
        Ok(None)
    }

    /// Ends the event at an empty line. Returns the event if it has data.
    fn end_event(&mut self) -> Option<SseEvent> {
        let event = &mut self.event;
        let has_id = std::mem::take(&mut event.has_id);
        if self.last_event_id != event.id {
            self.last_event_id.clone_from(&event.id);
        }
        let event_id = event.event_id.take();
        let topic = event.topic.take();
        let topics = event.topics.take();
        if !std::mem::take(&mut event.has_data) {
            event.event_type.clear();
            return None;
        }
        let event_type = std::mem::take(&mut event.event_type);
        Some(SseEvent {
            event_type: (!event_type.is_empty()).then_some(event_type),
            id: has_id.then(|| event.id.clone()),
            event_id,
            topic,
            topics,
            data: std::mem::take(&mut event.data),
        })
    }
}

impl Default for SseParser {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEvent {
    fn push_data(&mut self, line: &[u8], max_len: usize) -> Result<(), Error> {
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push('\n');
        }
        push_utf8_lossy(&mut self.data, line);
        if self.data.len() > max_len {
            let detail = format!("the data of an event has more than {max_len} bytes");
            return Err(Error::too_long(detail));
        }
        Ok(())
    }
}

fn line_too_long(max_len: usize) -> Error {
    Error::too_long(format!(
        "a line of an event stream has more than {max_len} bytes"
    ))
}

fn set_utf8_lossy(text: &mut String, bytes: &[u8]) {
    text.clear();
    push_utf8_lossy(text, bytes);
}

/// Appends `bytes` to `text`. Bytes that are not UTF-8 become U+FFFD, as the standard requires.
fn push_utf8_lossy(text: &mut String, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(valid) => text.push_str(valid),
        Err(_) => text.push_str(&String::from_utf8_lossy(bytes)),
    }
}
