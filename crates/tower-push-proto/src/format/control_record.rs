//! The records of the JSON formats that are no events: one object each, with a key of its own.

use bytes::{BufMut, BytesMut};

use crate::{
    encoder::End,
    event::{EventId, Gap},
};

/// Appends `{"id":"…","gap":{…}}`. The id is the cursor at which the stream goes on, and is left out if that is not known.
pub(crate) fn write_gap(gap: &Gap, out: &mut BytesMut) {
    write_object(
        gap.resumed.as_ref().map(EventId::as_str),
        "gap",
        &gap.to_json(),
        out,
    );
}

/// Appends `{"id":"…"}`.
pub(crate) fn write_cursor(id: &EventId, out: &mut BytesMut) {
    out.put_slice(b"{\"id\":\"");
    out.put_slice(id.as_str().as_bytes());
    out.put_slice(b"\"}");
}

/// Appends `{"id":"~finished","end":{"finished":true}}` for a source that has finished. For other ends there is no id, and a `retry` in
/// milliseconds if the end has one: `{"end":{"finished":false,"retry":1500}}`.
pub(crate) fn write_end(end: End, out: &mut BytesMut) {
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
