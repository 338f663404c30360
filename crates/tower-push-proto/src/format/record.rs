//! What the JSON formats say besides events: one object each, told from an envelope by its key.

use bytes::{BufMut, BytesMut};

use crate::{
    encoder::End,
    event::{EventId, Gap},
};

/// `{"id":"…","gap":{…}}`, the id being the cursor at which the stream goes on, where that is known.
pub fn gap(gap: &Gap, out: &mut BytesMut) {
    object(
        gap.resumed.as_ref().map(EventId::as_str),
        "gap",
        &gap.to_json(),
        out,
    );
}

/// `{"id":"…"}`.
pub fn cursor(id: &EventId, out: &mut BytesMut) {
    out.put_slice(b"{\"id\":\"");
    out.put_slice(id.as_str().as_bytes());
    out.put_slice(b"\"}");
}

/// `{"id":"~finished","end":{"finished":true}}`, or without an id for an end that is not for ever, and then maybe with the
/// milliseconds after which to come back: `{"end":{"finished":false,"retry":1500}}`.
pub fn end(end: End, out: &mut BytesMut) {
    let id = end.finished.then_some(EventId::FINISHED);
    object(id, "end", &end.to_json(), out);
}

fn object(id: Option<&str>, key: &str, json: &str, out: &mut BytesMut) {
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
