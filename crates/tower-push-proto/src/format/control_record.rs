//! Control records: the JSON objects that the JSON formats write for gaps, cursors and ends.
//!
//! A gap has the key `gap`, an end the key `end`, and a cursor only `id`. An event's [envelope](super::envelope) always has `data` or
//! `data_base64` instead.

use bytes::{BufMut, BytesMut};

use super::envelope::write_json_string;
use crate::{
    encoder::StreamEnd,
    event::{EventId, Gap},
};

/// Appends the record of a gap: `{"id":"…","gap":{…}}`. The id is the cursor after which the stream continues. A gap without this cursor
/// has no `id`.
pub fn write_gap(gap: &Gap, out: &mut BytesMut) {
    write_object(
        gap.resumed.as_ref().map(EventId::as_str),
        "gap",
        &gap.to_json(),
        out,
    );
}

/// Appends the record of a cursor that moves without an event: `{"id":"…"}`.
pub fn write_cursor(id: &EventId, out: &mut BytesMut) {
    out.put_slice(b"{\"id\":");
    write_json_string(id.as_str(), out);
    out.put_u8(b'}');
}

/// Appends the record of an end. For a source that has finished, the record is `{"id":"~finished","end":{"finished":true}}`. Any other end
/// has no id, and may have the milliseconds after which the client should reconnect: `{"end":{"finished":false,"retry":1500}}`.
pub fn write_end(end: StreamEnd, out: &mut BytesMut) {
    let id = end.finished.then_some(EventId::FINISHED);
    write_object(id, "end", &end.to_json(), out);
}

fn write_object(id: Option<&str>, key: &str, json: &str, out: &mut BytesMut) {
    out.put_u8(b'{');
    if let Some(id) = id {
        out.put_slice(b"\"id\":");
        write_json_string(id, out);
        out.put_u8(b',');
    }
    out.put_u8(b'"');
    out.put_slice(key.as_bytes());
    out.put_slice(b"\":");
    out.put_slice(json.as_bytes());
    out.put_u8(b'}');
}
