//! Whatever is in a request's query, its `Last-Event-ID` and its `Accept`: the query reads as the URL standard has it, and a
//! cursor is an id that was sent.

#![no_main]

use http::{Request, Uri};
use libfuzzer_sys::fuzz_target;
use testkit::parse_headers;
use tower_push::{
    EventId,
    source::{Subscription, query::decode_parameter},
    transport::Preference,
};

const TYPES: [&str; 3] = ["text/event-stream", "application/x-ndjson", "text/plain"];
const CURSORS: [&str; 2] = ["last_event_id", "lastEventId"];

fuzz_target!(|input: &[u8]| {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (uri, lines) = input.split_at(end.unwrap_or(input.len()));
    let Ok(uri) = Uri::try_from(uri) else {
        return;
    };
    let mut head = Request::new(()).into_parts().0;
    head.uri = uri;
    head.headers = parse_headers(lines);

    let query = head.uri.query().unwrap_or_default();
    for name in ["a", "transport"].into_iter().chain(CURSORS) {
        let theirs = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        let theirs: Vec<_> = theirs.map(|(_, value)| value).collect();
        let ours: Vec<_> = decode_parameter(query, name).collect();
        assert_eq!(ours, theirs, "{name} in {query}");
    }

    if let Some(id) = Subscription::new(&head, "sse").cursor() {
        assert!(EventId::new(id.as_str()).is_ok());
        let mut sent = head.headers.get_all("last-event-id").iter();
        let mut asked = CURSORS
            .iter()
            .flat_map(|name| decode_parameter(query, name));
        assert!(sent.any(|sent| sent == id.as_str()) || asked.any(|asked| asked == id.as_str()));
    }

    if let Some((_, chosen)) = Preference::from_accept(&head.headers, &TYPES) {
        assert!(TYPES.contains(&chosen));
    }
});
