//! Envelopes: the JSON objects ([RFC 8259](https://www.rfc-editor.org/rfc/rfc8259)) that the JSON formats write for events, each on one line.

use bytes::{BufMut, BytesMut};

use crate::{
    base64, byte_search,
    event::{Encoding, Event, EventId, Fields, Payload, Topic},
    frame_buffer::FrameBuffer,
};

/// The bytes that are reserved for the members of an envelope besides the payload.
const MEMBERS_CAPACITY: usize = 64;

/// Appends `text` as a JSON string, with its quotes. U+0085, U+2028 and U+2029 are escaped, too: JSON allows them in strings, but some
/// programs split lines at them.
pub fn write_json_string(text: &str, out: &mut BytesMut) {
    let mut rest = text;
    out.reserve(rest.len() + 2);
    out.put_u8(b'"');
    while let Some(index) = byte_search::find_byte(rest.as_bytes(), may_need_escape) {
        let (unescaped, tail) = rest.split_at(index);
        out.put_slice(unescaped.as_bytes());
        let mut chars = tail.chars();
        if let Some(character) = chars.next() {
            write_json_char(character, out);
        }
        rest = chars.as_str();
    }
    out.put_slice(rest.as_bytes());
    out.put_u8(b'"');
}

/// Whether a byte begins a character that is escaped in a JSON string. True also for other characters with the first byte of a
/// [Unicode line break](is_unicode_line_break).
fn may_need_escape(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\' || may_begin_unicode_line_break(byte)
}

/// Appends a character of a JSON string, escaped if necessary.
fn write_json_char(character: char, out: &mut BytesMut) {
    match character {
        '\n' => out.put_slice(br"\n"),
        '\r' => out.put_slice(br"\r"),
        '\t' => out.put_slice(br"\t"),
        '"' => out.put_slice(br#"\""#),
        '\\' => out.put_slice(br"\\"),
        _ if character < ' ' || is_unicode_line_break(character) => {
            out.put_slice(unicode_escape(character).as_bytes());
        }
        _ => out.put_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Whether a character is a line break of Unicode that JSON allows in strings: NEXT LINE, LINE SEPARATOR or PARAGRAPH SEPARATOR.
fn is_unicode_line_break(character: char) -> bool {
    matches!(character, '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Whether a byte is the first byte of a [Unicode line break](is_unicode_line_break) in UTF-8. True also for the first byte of some other
/// characters.
fn may_begin_unicode_line_break(byte: u8) -> bool {
    byte == 0xc2 || byte == 0xe2
}

/// Returns the escape sequence of a character below U+10000 in a JSON string.
fn unicode_escape(character: char) -> String {
    format!("\\u{:04x}", u32::from(character))
}

/// Puts a JSON text on one line: replaces line breaks with spaces, and escapes [Unicode line breaks](is_unicode_line_break). The JSON value
/// stays the same, because line breaks occur only between tokens, and Unicode line breaks only inside strings.
#[cfg(feature = "json")]
pub(crate) fn json_on_one_line(json: String) -> String {
    let may_break_line =
        |byte| byte == b'\r' || byte == b'\n' || may_begin_unicode_line_break(byte);
    if byte_search::find_byte(json.as_bytes(), may_break_line).is_none() {
        return json;
    }
    let mut line = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\r' | '\n' => line.push(' '),
            _ if is_unicode_line_break(character) => line.push_str(&unicode_escape(character)),
            _ => line.push(character),
        }
    }
    line
}

/// Appends a payload as a JSON value: a JSON payload unchanged, text as a string, and bytes as a string in base64.
pub fn write_payload(payload: &Payload, out: &mut BytesMut) {
    match payload {
        Payload::Json(json) => out.put_slice(json.as_bytes()),
        Payload::Text(text) => write_json_string(text, out),
        Payload::Binary(bytes) => {
            out.put_u8(b'"');
            base64::encode(bytes, out);
            out.put_u8(b'"');
        }
    }
}

/// Appends an event in its envelope: `{"id":…,"topic":…,"event":…,"data":…}`. Only `data` is always present. An event with several topics also
/// has a member `topics`, an array.
///
/// A binary payload is in `data_base64` instead of `data`, as in
/// [CloudEvents](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md#31-handling-of-data).
pub fn write_event(fields: &Fields, out: &mut BytesMut) {
    write_envelope(fields, None, out);
}

/// Like [`write_event`], with a member `"cursor"` after `id`. A client resumes from this cursor instead of from the id.
pub fn write_event_with_cursor(fields: &Fields, cursor: &EventId, out: &mut BytesMut) {
    write_envelope(fields, Some(cursor), out);
}

/// Appends an event with a cursor in its envelope to the frames of a stream. Streams with different cursors share the encoded payload
/// [if it is large](FrameBuffer::is_worth_sharing).
pub(super) fn push_event_with_cursor(event: &Event, cursor: &EventId, out: &mut FrameBuffer) {
    if FrameBuffer::is_worth_sharing(event) {
        write_envelope_ids(event.fields(), Some(cursor), out.buffer());
        out.push_event::<CursorIndependentEnvelopeEncoding>(event);
    } else {
        write_event_with_cursor(event.fields(), cursor, out.buffer());
    }
}

/// The encoding of the part of an envelope that does not depend on the cursor: the members after `id` and `cursor`, and the closing brace.
struct CursorIndependentEnvelopeEncoding;

impl Encoding for CursorIndependentEnvelopeEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        out.reserve(fields.payload.as_bytes().len() + MEMBERS_CAPACITY);
        write_envelope_after_ids(fields, out);
    }
}

#[inline]
fn write_envelope(fields: &Fields, cursor: Option<&EventId>, out: &mut BytesMut) {
    out.reserve(fields.payload.as_bytes().len() + MEMBERS_CAPACITY);
    write_envelope_ids(fields, cursor, out);
    write_envelope_after_ids(fields, out);
}

/// Appends the opening brace, and the members `id` and `cursor`.
#[inline]
fn write_envelope_ids(fields: &Fields, cursor: Option<&EventId>, out: &mut BytesMut) {
    out.put_u8(b'{');
    if let Some(id) = &fields.id {
        write_id_member(b"\"id\":\"", id, out);
    }
    if let Some(cursor) = cursor {
        write_id_member(b"\"cursor\":\"", cursor, out);
    }
}

/// Appends the members after `id` and `cursor`, and the closing brace.
#[inline]
fn write_envelope_after_ids(fields: &Fields, out: &mut BytesMut) {
    if let Some(topic) = &fields.topic {
        out.put_slice(b"\"topic\":");
        write_json_string(topic.as_str(), out);
        out.put_u8(b',');
    }
    if let Some(topics) = &fields.topics {
        write_topics_member(topics, out);
    }
    if let Some(event_type) = &fields.event_type {
        out.put_slice(b"\"event\":");
        write_json_string(event_type.as_str(), out);
        out.put_u8(b',');
    }
    out.put_slice(match fields.payload {
        Payload::Binary(_) => b"\"data_base64\":" as &[u8],
        Payload::Text(_) | Payload::Json(_) => b"\"data\":",
    });
    write_payload(&fields.payload, out);
    out.put_u8(b'}');
}

/// Appends the member `topics`, and a comma.
#[cold]
fn write_topics_member(topics: &[Topic], out: &mut BytesMut) {
    out.put_slice(b"\"topics\":");
    for (index, topic) in topics.iter().enumerate() {
        out.put_u8(if index == 0 { b'[' } else { b',' });
        write_json_string(topic.as_str(), out);
    }
    out.put_slice(b"],");
}

/// Appends a member whose value is an id, and a comma. `key` ends with the opening quote of the value.
// With inlining, the length of `key` is a constant, and the key is copied without a call of `memcpy`.
#[inline(always)]
fn write_id_member(key: &[u8], id: &EventId, out: &mut BytesMut) {
    out.put_slice(key);
    if needs_escape(id.as_str()) {
        write_escaped_id(id, out);
    } else {
        out.put_slice(id.as_str().as_bytes());
    }
    out.put_slice(b"\",");
}

/// Appends an id as the content of a JSON string, without the quotes.
#[cold]
fn write_escaped_id(id: &EventId, out: &mut BytesMut) {
    let json = json_string(id.as_str());
    out.put_slice(&json.as_bytes()[1..json.len() - 1]);
}

/// Whether an id contains a byte that must be escaped in a JSON string. An id has no control characters.
fn needs_escape(id: &str) -> bool {
    // One pass over all bytes of a short text is faster than a search that ends at the first match.
    let or_is_special = |any: u8, byte: &u8| any | u8::from(*byte == b'"' || *byte == b'\\');
    id.as_bytes().iter().fold(0, or_is_special) != 0
}

/// Returns `text` as a JSON string, with its quotes.
pub(crate) fn json_string(text: &str) -> String {
    let mut out = BytesMut::new();
    write_json_string(text, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_and_quotes_are_escaped() {
        assert_eq!(
            json_string("a\"b\\c\n\r\t\0\u{1e}\u{1f}"),
            r#""a\"b\\c\n\r\t\u0000\u001e\u001f""#
        );
        assert_eq!(
            json_string("\u{85}\u{2028}\u{2029}"),
            r#""\u0085\u2028\u2029""#
        );
        let unescaped = "\u{7f}é£\u{80}\u{84}\u{86}“…”\u{2027}\u{202a}";
        assert_eq!(json_string(unescaped), format!("\"{unescaped}\""));
        assert_eq!(json_string(""), "\"\"");
    }

    proptest! {
        #[test]
        fn json_string_reads_back(text: String) {
            let json = json_string(&text);
            prop_assert!(!json.contains(|c| c < ' ' || is_unicode_line_break(c)));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn typographic_json_string_reads_back(text in "[a\"\\\\\n\0£\u{80}-\u{90}\u{2020}-\u{2030}]*") {
            let json = json_string(&text);
            prop_assert!(!json.contains(|c| c < ' ' || is_unicode_line_break(c)));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
