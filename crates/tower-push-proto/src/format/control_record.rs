//! Control records: the JSON objects that the JSON formats write for gaps, cursors and ends.
//!
//! Each one has a key that an event's [envelope](super::envelope) does not have.

use bytes::{BufMut, BytesMut};

use crate::{
    encoder::End,
    event::{EventId, Gap},
};

/// Appends the record of a gap: `{"id":"…","gap":{…}}`. The id is the cursor at which the stream continues, and absent if the gap does not
/// say.
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
    out.put_slice(b"{\"id\":\"");
    out.put_slice(id.as_str().as_bytes());
    out.put_slice(b"\"}");
}

/// Appends the record of an end. If the source has finished, it is `{"id":"~finished","end":{"finished":true}}`. Otherwise it has no id, and
/// may have the time in milliseconds after which the client should reconnect: `{"end":{"finished":false,"retry":1500}}`.
pub fn write_end(end: End, out: &mut BytesMut) {
    let id = end.finished.then_some(EventId::FINISHED);
    write_object(id, "end", &end.to_json(), out);
}

fn write_object(id: Option<&str>, key: &str, json: &str, out: &mut BytesMut) {
    out.put_u8(b'{');
    if let Some(id) = id {
        out.put_slice(b"\"id\":\"");
        out.put_slice(id.as_bytes());
        out.put_slice(b"\",");
    }
    out.put_u8(b'"');
    out.put_slice(key.as_bytes());
    out.put_slice(b"\":");
    out.put_slice(json.as_bytes());
    out.put_u8(b'}');
}
