//! Arbitrary queries, `Last-Event-ID` and `Accept` headers. The query is decoded as in the URL standard, and a cursor is an id that the request
//! contains.

#![no_main]

use http::{Request, Uri};
use libfuzzer_sys::fuzz_target;
use testkit::parse_headers;
use tower_push::{
    EventId,
    source::{Subscription, query::decode_parameter},
    transport::Preference,
};

const MEDIA_TYPES: [&str; 3] = ["text/event-stream", "application/x-ndjson", "text/plain"];
const CURSOR_PARAMETERS: [&str; 4] = [
    "last_event_id",
    "lastEventId",
    "lastEventID",
    "Last-Event-ID",
];

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
    for name in ["a", "transport"].into_iter().chain(CURSOR_PARAMETERS) {
        let expected = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        let expected: Vec<_> = expected.map(|(_, value)| value).collect();
        let decoded: Vec<_> = decode_parameter(query, name).collect();
        assert_eq!(decoded, expected, "{name} in {query}");
    }

    if let Some(id) = Subscription::new(&head, "sse").cursor() {
        assert!(EventId::new(id.as_str()).is_ok());
        let mut in_headers = head.headers.get_all("last-event-id").iter();
        let mut in_query = CURSOR_PARAMETERS
            .iter()
            .flat_map(|name| decode_parameter(query, name));
        assert!(
            in_headers.any(|in_headers| in_headers == id.as_str())
                || in_query.any(|in_query| in_query.replace(' ', "+") == id.as_str())
        );
    }

    if let Some((_, chosen)) = Preference::from_accept(&head.headers, &MEDIA_TYPES) {
        assert!(MEDIA_TYPES.contains(&chosen));
    }
});
