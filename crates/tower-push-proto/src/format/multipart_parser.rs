use bytes::{Buf, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};

use super::DEFAULT_MAX_RECORD_LEN;
use crate::{
    byte_search, decimal,
    error::Error,
    header_list::{media_type, split_unquoted},
};

/// An incremental parser of multipart bodies ([RFC 2046 §5.1](https://www.rfc-editor.org/rfc/rfc2046#section-5.1)), `multipart/mixed`
/// and `multipart/x-mixed-replace` alike.
///
/// The input may be cut anywhere. A part with a `Content-Length` is returned as soon as its content is complete. A part without a
/// `Content-Length` is returned when the delimiter after the part is complete. Bytes before the first and after the last delimiter are
/// ignored.
///
/// # Limits
/// The parser keeps at most one part and the last chunk of input. The parser fails with [`Error::is_too_long`] if the headers of a part are
/// longer than [`max_headers_len`](Self::max_headers_len), or its content longer than [`max_part_len`](Self::max_part_len). After headers
/// or a content that are too long, every later call fails too.
///
/// ```
/// use http::HeaderValue;
/// use tower_push_proto::format::MultipartParser;
///
/// let content_type = HeaderValue::from_static("multipart/mixed; boundary=\"b1\"");
/// let mut parser = MultipartParser::from_content_type(&content_type)?;
/// let mut input = &b"--b1\r\nEvent-ID: 7\r\nContent-Length: 2\r\n\r\nhi"[..];
/// let part = parser.next_part(&mut input)?.unwrap();
/// assert_eq!(part.headers["event-id"], "7");
/// assert_eq!(part.content, "hi");
///
/// assert!(parser.next_part(&mut &b"\r\n--b1--\r\n"[..])?.is_none());
/// assert!(parser.is_finished());
/// # Ok::<(), tower_push_proto::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct MultipartParser {
    max_headers_len: usize,
    max_part_len: usize,
    /// The delimiter between parts: `\r\n--BOUNDARY`.
    delimiter: Vec<u8>,
    position: BodyPosition,
    /// The input that has been read, but not yet returned as a part.
    buffer: BytesMut,
    /// The number of bytes at the front of the buffer that were searched without success. No delimiter or end of headers begins in
    /// these bytes.
    searched: usize,
}

/// A part of a multipart body.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MultipartPart {
    /// The headers.
    pub headers: HeaderMap,
    /// The content.
    pub content: Bytes,
}

/// The kind of bytes at the front of the parser's buffer.
#[derive(Debug)]
enum BodyPosition {
    /// The bytes before the first delimiter, which are ignored.
    Preamble,
    /// The bytes after `--BOUNDARY`: the end of the line, or `--`.
    DelimiterSuffix,
    /// The headers of a part.
    Headers,
    /// The line break after the headers, and the content of a part without a `Content-Length`, up to the next delimiter.
    Content(HeaderMap),
    /// The content of a part whose `Content-Length` is the second field.
    SizedContent(HeaderMap, usize),
    /// The delimiter after a content whose length was known.
    Delimiter,
    /// The bytes after the last delimiter, which are ignored.
    Epilogue,
    /// No bytes are expected: an error was returned, and every later call fails.
    Failed,
}

/// The maximum length of a boundary: [RFC 2046 §5.1.1](https://www.rfc-editor.org/rfc/rfc2046#section-5.1.1).
const MAX_BOUNDARY_LEN: usize = 70;

/// The length of `\r\n`, in bytes.
const LINE_BREAK_LEN: usize = 2;

/// The maximum number of spaces and tabs after a delimiter.
const MAX_PADDING_LEN: usize = 256;

impl MultipartParser {
    /// Makes a parser for a body with this boundary. `boundary` does not include the two hyphens before it.
    pub fn new(boundary: &str) -> Self {
        Self {
            max_headers_len: 64 * 1024,
            max_part_len: DEFAULT_MAX_RECORD_LEN,
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            position: BodyPosition::Preamble,
            // A delimiter includes the line break before the boundary. The first delimiter of a body may have no line break before it, so
            // the parser supplies a line break.
            buffer: BytesMut::from("\r\n"),
            searched: 0,
        }
    }

    /// Makes a parser for a body of this `Content-Type`.
    ///
    /// # Errors
    /// [`Error::is_malformed`] if the content type has no boundary of 1 to 70 bytes.
    pub fn from_content_type(content_type: &HeaderValue) -> Result<Self, Error> {
        let text = content_type.to_str().unwrap_or_default();
        let mut parameters = split_unquoted(text, ';').skip(1);
        let boundary = parameters.find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            let is_boundary = name.trim().eq_ignore_ascii_case("boundary");
            is_boundary.then(|| unquoted(value.trim()))
        });
        boundary
            .flatten()
            .filter(|boundary| (1..=MAX_BOUNDARY_LEN).contains(&boundary.len()))
            .map(|boundary| Self::new(&boundary))
            .ok_or_else(|| Error::malformed("the content type has no valid boundary"))
    }

    /// Sets the maximum length of a part's headers, in bytes: 64 KiB by default.
    pub fn max_headers_len(mut self, bytes: usize) -> Self {
        self.max_headers_len = bytes;
        self
    }

    /// Sets the maximum length of a part's content, in bytes: 4 MiB by default.
    pub fn max_part_len(mut self, bytes: usize) -> Self {
        self.max_part_len = bytes;
        self
    }

    /// Whether the last delimiter was read: no part follows.
    pub fn is_finished(&self) -> bool {
        matches!(self.position, BodyPosition::Epilogue)
    }

    /// Reads from the front of `input` until the next part is complete. Returns `None` once all of `input` is read and the part is still
    /// incomplete. More input has to follow, unless the body [is finished](Self::is_finished).
    ///
    /// # Errors
    /// [`Error::is_too_long`] if a part is longer than its limits, [`Error::is_malformed`] if the body is not a valid multipart body.
    pub fn next_part(&mut self, input: &mut impl Buf) -> Result<Option<MultipartPart>, Error> {
        loop {
            match self.parse_buffer() {
                Ok(None) => {}
                Ok(part) => return Ok(part),
                Err(error) => {
                    self.position = BodyPosition::Failed;
                    self.buffer = BytesMut::new();
                    return Err(error);
                }
            }
            if !input.has_remaining() {
                return Ok(None);
            }
            let chunk = input.chunk();
            self.buffer.extend_from_slice(chunk);
            let len = chunk.len();
            input.advance(len);
        }
    }

    /// Parses the buffer up to the end of the next part. Returns `None` if the buffer does not contain the whole part.
    fn parse_buffer(&mut self) -> Result<Option<MultipartPart>, Error> {
        loop {
            match std::mem::replace(&mut self.position, BodyPosition::Failed) {
                BodyPosition::Preamble => {
                    if self.take_until_delimiter().is_none() {
                        self.position = BodyPosition::Preamble;
                        self.discard_preamble();
                        return Ok(None);
                    }
                    self.position = BodyPosition::DelimiterSuffix;
                }
                BodyPosition::DelimiterSuffix => match self.take_delimiter_suffix() {
                    Some(position) => self.position = position,
                    None => {
                        self.position = BodyPosition::DelimiterSuffix;
                        return Ok(None);
                    }
                },
                BodyPosition::Headers => {
                    let Some(headers) = self.take_headers()? else {
                        self.position = BodyPosition::Headers;
                        return Ok(None);
                    };
                    self.position = match parse_content_length(&headers)? {
                        Some(len) if len > self.max_part_len => return Err(self.part_too_long()),
                        Some(len) => {
                            self.buffer.advance(LINE_BREAK_LEN);
                            BodyPosition::SizedContent(headers, len)
                        }
                        None => BodyPosition::Content(headers),
                    };
                }
                BodyPosition::SizedContent(headers, len) => {
                    if self.buffer.len() < len {
                        self.position = BodyPosition::SizedContent(headers, len);
                        return Ok(None);
                    }
                    let content = self.buffer.split_to(len).freeze();
                    self.position = BodyPosition::Delimiter;
                    return Ok(Some(MultipartPart { headers, content }));
                }
                BodyPosition::Delimiter => {
                    let len = self.delimiter.len().min(self.buffer.len());
                    if self.buffer[..len] != self.delimiter[..len] {
                        let detail = "a part is longer than its `Content-Length`";
                        return Err(Error::malformed(detail));
                    }
                    if len < self.delimiter.len() {
                        self.position = BodyPosition::Delimiter;
                        return Ok(None);
                    }
                    self.buffer.advance(len);
                    self.position = BodyPosition::DelimiterSuffix;
                }
                BodyPosition::Content(headers) => {
                    let max_len = self.max_part_len.saturating_add(LINE_BREAK_LEN);
                    let Some(mut content) = self.take_until_delimiter() else {
                        if self.searched > max_len {
                            return Err(self.part_too_long());
                        }
                        self.position = BodyPosition::Content(headers);
                        return Ok(None);
                    };
                    if content.len() > max_len {
                        return Err(self.part_too_long());
                    }
                    // In an empty part, the line break after the headers belongs to the delimiter, which was removed already.
                    content.advance(content.len().min(LINE_BREAK_LEN));
                    self.position = BodyPosition::DelimiterSuffix;
                    return Ok(Some(MultipartPart { headers, content }));
                }
                BodyPosition::Epilogue => {
                    self.position = BodyPosition::Epilogue;
                    self.buffer.clear();
                    return Ok(None);
                }
                BodyPosition::Failed => {
                    return Err(Error::malformed("the multipart body is broken"));
                }
            }
        }
    }

    /// Removes the next delimiter and the bytes before it, and returns the bytes before it. Returns `None` if the buffer contains no
    /// delimiter.
    fn take_until_delimiter(&mut self) -> Option<Bytes> {
        let mut from = self.searched;
        while let Some(offset) = byte_search::find(&self.buffer[from..], &self.delimiter) {
            let start = from + offset;
            let end = start + self.delimiter.len();
            match parse_delimiter_suffix(&self.buffer[end..]) {
                DelimiterSuffix::NotADelimiter => from = start + 1,
                DelimiterSuffix::Incomplete => {
                    self.searched = start;
                    return None;
                }
                DelimiterSuffix::Line(_) | DelimiterSuffix::Last => {
                    let content = self.buffer.split_to(start).freeze();
                    self.buffer.advance(self.delimiter.len());
                    self.searched = 0;
                    return Some(content);
                }
            }
        }
        // The last bytes of the buffer may be the beginning of a delimiter.
        self.searched = (self.buffer.len() + 1)
            .saturating_sub(self.delimiter.len())
            .max(from);
        None
    }

    /// Removes the bytes of the preamble that cannot belong to a delimiter.
    fn discard_preamble(&mut self) {
        self.buffer.advance(self.searched.min(self.buffer.len()));
        self.searched = 0;
    }

    /// Removes the bytes after `--BOUNDARY` that belong to the delimiter. Returns what follows the delimiter, or `None` if the delimiter is
    /// incomplete.
    fn take_delimiter_suffix(&mut self) -> Option<BodyPosition> {
        match parse_delimiter_suffix(&self.buffer) {
            DelimiterSuffix::Incomplete => None,
            DelimiterSuffix::Line(len) => {
                self.buffer.advance(len);
                Some(BodyPosition::Headers)
            }
            DelimiterSuffix::Last => Some(BodyPosition::Epilogue),
            DelimiterSuffix::NotADelimiter => Some(BodyPosition::Failed),
        }
    }

    /// Removes and parses the headers of a part. The line break of the empty line after the headers stays in the buffer, because it may
    /// belong to a delimiter. Returns `None` if the headers are incomplete.
    fn take_headers(&mut self) -> Result<Option<HeaderMap>, Error> {
        let block = if self.buffer.starts_with(b"\r\n") {
            BytesMut::new()
        } else {
            let from = self.searched;
            let Some(offset) = byte_search::find(&self.buffer[from..], b"\r\n\r\n") else {
                self.searched = self.buffer.len().saturating_sub(3);
                if self.searched > self.max_headers_len {
                    return Err(self.headers_too_long());
                }
                return Ok(None);
            };
            let block = self.buffer.split_to(from + offset);
            self.buffer.advance(LINE_BREAK_LEN);
            block
        };
        self.searched = 0;
        if block.len() > self.max_headers_len {
            return Err(self.headers_too_long());
        }
        parse_headers(&block).map(Some)
    }

    fn headers_too_long(&self) -> Error {
        let max_len = self.max_headers_len;
        Error::too_long(format!(
            "the headers of a part have more than {max_len} bytes"
        ))
    }

    fn part_too_long(&self) -> Error {
        let max_len = self.max_part_len;
        Error::too_long(format!("a part has more than {max_len} bytes"))
    }
}

/// The kind of the bytes after a `--BOUNDARY`.
enum DelimiterSuffix {
    /// Bytes that cannot follow a delimiter: the `--BOUNDARY` before them is content.
    NotADelimiter,
    /// Too few bytes to tell: with more bytes, the suffix may become `Line` or `Last`.
    Incomplete,
    /// Padding and a line break of this total length, in bytes. A part follows.
    Line(usize),
    /// Two hyphens: this is the last delimiter.
    Last,
}

fn parse_delimiter_suffix(bytes: &[u8]) -> DelimiterSuffix {
    let padding = bytes
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    match &bytes[padding..] {
        _ if padding > MAX_PADDING_LEN => DelimiterSuffix::NotADelimiter,
        [b'\r', b'\n', ..] => DelimiterSuffix::Line(padding + 2),
        [b'-', b'-', ..] if padding == 0 => DelimiterSuffix::Last,
        [] | [b'\r'] => DelimiterSuffix::Incomplete,
        [b'-'] if padding == 0 => DelimiterSuffix::Incomplete,
        _ => DelimiterSuffix::NotADelimiter,
    }
}

fn parse_headers(block: &[u8]) -> Result<HeaderMap, Error> {
    let malformed = || Error::malformed("a header of a part cannot be read");
    let mut headers = HeaderMap::new();
    let lines = block
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = byte_search::find_byte(line, |byte| byte == b':').ok_or_else(malformed)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| malformed())?;
        let value =
            HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| malformed())?;
        headers.try_append(name, value).map_err(|_| malformed())?;
    }
    Ok(headers)
}

/// Returns the value of `Content-Length`. Returns `None` if the part has no such header.
fn parse_content_length(headers: &HeaderMap) -> Result<Option<usize>, Error> {
    let Some(value) = headers.get(CONTENT_LENGTH) else {
        return Ok(None);
    };
    let number = decimal::parse_saturating(value.as_bytes());
    let number =
        number.ok_or_else(|| Error::malformed("the `Content-Length` of a part is no number"))?;
    Ok(Some(usize::try_from(number).unwrap_or(usize::MAX)))
}

/// Returns a parameter's value without its quotes and escapes, or `None` if its quotes have no end.
fn unquoted(value: &str) -> Option<String> {
    let Some(quoted) = value.strip_prefix('"') else {
        return Some(value.to_owned());
    };
    let quoted = quoted.strip_suffix('"')?;
    let mut is_escaped = false;
    let unescaped = quoted.chars().filter(|c| {
        is_escaped = *c == '\\' && !is_escaped;
        !is_escaped
    });
    Some(unescaped.collect())
}

impl MultipartPart {
    /// Returns the media type of the content without its parameters. Returns `None` if the part has no `Content-Type`.
    pub fn media_type(&self) -> Option<&str> {
        media_type(self.headers.get(CONTENT_TYPE)?)
    }
}
