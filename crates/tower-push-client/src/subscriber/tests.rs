//! Subscribers in virtual time.

use http::{Response, StatusCode, response::Parts};
#[cfg(feature = "websocket")]
use tower_push_proto::{
    event::CloseCode,
    websocket::{frame::encode_close_frame, handshake::accept_key},
};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn head(status: u16, headers: &[(&str, &str)]) -> Parts {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap().into_parts().0
}

fn sse_head() -> Parts {
    head(200, &[("content-type", "text/event-stream")])
}

fn subscriber(now: Instant) -> Subscriber {
    let config = Arc::new(SubscriberConfig::new());
    Subscriber::new(config, Uri::from_static("http://host/feed"), None, now)
}

fn subscriber_for(transport: Transport, now: Instant) -> Subscriber {
    let mut config = SubscriberConfig::new();
    config.transports = [transport].into();
    let uri = Uri::from_static("http://host/feed");
    Subscriber::new(Arc::new(config), uri, None, now)
}

/// Connects a subscriber to an event stream.
fn connect(subscriber: &mut Subscriber, now: Instant) {
    subscriber.poll_request(now).unwrap();
    let action = subscriber.handle_response(&sse_head(), now);
    assert_eq!(action, ResponseAction::ReadBody);
}

/// Opens a WebSocket for a subscriber that asks for one.
#[cfg(feature = "websocket")]
fn connect_websocket(subscriber: &mut Subscriber, now: Instant) {
    let request = subscriber.poll_request(now).unwrap();
    let accept = accept_key(request.headers()["sec-websocket-key"].as_bytes()).unwrap();
    let mut head = head(101, &[("connection", "upgrade"), ("upgrade", "websocket")]);
    head.headers.insert("sec-websocket-accept", accept);
    let action = subscriber.handle_response(&head, now);
    assert_eq!(action, ResponseAction::Upgrade);
}

fn items(subscriber: &mut Subscriber, now: Instant) -> Vec<Result<ClientItem, Error>> {
    std::iter::from_fn(|| subscriber.poll_item(|| now)).collect()
}

/// Returns the delay of the last item, which must be `Reconnecting`.
fn last_delay(subscriber: &mut Subscriber, now: Instant) -> Duration {
    match items(subscriber, now).pop() {
        Some(Ok(ClientItem::Reconnecting { delay, .. })) => delay,
        item => panic!("{item:?}"),
    }
}

/// The ways in which a server says when to come back: in 10 s.
#[derive(Clone, Copy, Debug)]
enum Hint {
    /// A record, before the stream ends.
    End,
    /// The field `retry`, before the stream is cut.
    Retry,
    /// The header `Retry-After`, of a server that is not ready.
    RetryAfter,
    /// The reason of a close frame.
    #[cfg(feature = "websocket")]
    CloseReason,
}

impl Hint {
    const ALL: &[Self] = &[
        Self::End,
        Self::Retry,
        Self::RetryAfter,
        #[cfg(feature = "websocket")]
        Self::CloseReason,
    ];

    /// Gives the hint to a new subscriber.
    fn give(self, subscriber: &mut Subscriber, now: Instant) {
        match self {
            Self::End => {
                connect(subscriber, now);
                let end =
                    "id: 1\ndata: x\n\nevent: end\ndata: {\"finished\":false,\"retry\":10000}\n\n";
                subscriber.handle_input(end.into(), now);
                items(subscriber, now);
                subscriber.handle_end(Ok(()), now);
            }
            Self::Retry => {
                connect(subscriber, now);
                subscriber.handle_input("retry: 10000\ndata: x\n\n".into(), now);
                items(subscriber, now);
                subscriber.handle_end(Err("cut".into()), now);
            }
            Self::RetryAfter => {
                subscriber.poll_request(now).unwrap();
                subscriber.handle_response(&head(503, &[("retry-after", "10")]), now);
                subscriber.handle_end(Ok(()), now);
            }
            #[cfg(feature = "websocket")]
            Self::CloseReason => {
                let reason = "{\"finished\":false,\"retry\":10000}";
                connect_websocket(subscriber, now);
                let mut frame = bytes::BytesMut::new();
                let close = CloseFrame::new(CloseCode::new(1012).unwrap(), reason);
                encode_close_frame(&close, &mut frame);
                subscriber.handle_input(frame.freeze(), now);
                items(subscriber, now);
                subscriber.handle_end(Ok(()), now);
            }
        }
    }
}

/// A server that restarts tells all its clients the same time. They return within this time and twice this time, evenly spread.
#[test]
fn thousand_clients_return_spread_over_the_hint() {
    for hint in Hint::ALL {
        assert_clients_are_spread(*hint);
    }
}

fn assert_clients_are_spread(hint: Hint) {
    let now = Instant::now();
    let mut clients_per_second = [0; 10];
    for _ in 0..1000 {
        let mut subscriber = subscriber(now);
        #[cfg(feature = "websocket")]
        if matches!(hint, Hint::CloseReason) {
            subscriber = subscriber_for(Transport::WebSocket, now);
        }
        hint.give(&mut subscriber, now);
        let delay = last_delay(&mut subscriber, now);
        assert!((10 * SECOND..20 * SECOND).contains(&delay));
        assert!(
            subscriber
                .poll_request(now + delay - SECOND / 1000)
                .is_none()
        );
        assert!(subscriber.poll_request(now + delay).is_some());
        clients_per_second[delay.as_secs() as usize - 10] += 1;
    }
    assert!(
        clients_per_second
            .iter()
            .all(|clients| (60..140).contains(clients)),
        "{hint:?}: {clients_per_second:?}"
    );
}

/// A server that cannot be reached is not overrun: the delays are spread, and their bound grows.
#[test]
fn unreachable_server_sees_ever_fewer_requests() {
    let start = Instant::now();
    let (mut requests_at_first, mut requests_later) = (0, 0);
    for _ in 0..1000 {
        let (mut subscriber, mut now) = (subscriber(start), start);
        while now < start + 120 * SECOND {
            subscriber.poll_request(now).unwrap();
            match now < start + 20 * SECOND {
                true => requests_at_first += 1,
                false if now >= start + 100 * SECOND => requests_later += 1,
                false => {}
            }
            subscriber.handle_request_error("refused".into(), now);
            now += last_delay(&mut subscriber, now);
        }
    }
    assert!(
        requests_at_first > 4000 && requests_later < 2500,
        "{requests_at_first} {requests_later}"
    );
}

/// Failures that say nothing about the transport, such as those of a server that restarts, lead to no other one.
#[test]
fn transport_is_kept_while_the_server_cannot_be_reached() {
    let now = Instant::now();
    let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    for has_worked in [true, false] {
        for failure in [
            RequestFailure::Connect,
            RequestFailure::Prepare,
            RequestFailure::Other,
            RequestFailure::Timeout,
        ] {
            let (mut subscriber, mut now) = (subscriber(now), now);
            if has_worked {
                connect(&mut subscriber, now);
                subscriber.handle_input("data: x\n\n".into(), now);
                items(&mut subscriber, now);
                subscriber.handle_end(Err("cut".into()), now);
                now += last_delay(&mut subscriber, now);
            }
            for _ in 0..5 {
                subscriber.poll_request(now).unwrap();
                match failure {
                    RequestFailure::Connect => {
                        subscriber.handle_request_error(refused().into(), now);
                    }
                    RequestFailure::Prepare => {
                        subscriber.handle_prepare_error("no token".into(), now);
                    }
                    RequestFailure::Other => subscriber.handle_request_error("reset".into(), now),
                    RequestFailure::Timeout => {
                        now = subscriber.poll_timeout().unwrap();
                        subscriber.handle_timeout(now);
                    }
                }
                now += last_delay(&mut subscriber, now);
            }
            let request = subscriber.poll_request(now).unwrap();
            let expected = match failure {
                RequestFailure::Other | RequestFailure::Timeout if !has_worked => {
                    "application/json"
                }
                _ => "text/event-stream",
            };
            assert_eq!(
                request.headers()["accept"],
                expected,
                "{failure:?} {has_worked}"
            );
        }
    }
}

/// A server of another project has event streams only, which begin without a byte.
#[test]
fn quiet_event_stream_is_kept_if_the_server_offers_no_other_transport() {
    let mut now = Instant::now();
    let mut subscriber = subscriber(now);
    connect(&mut subscriber, now);
    now = subscriber.poll_timeout().unwrap();
    subscriber.handle_timeout(now);
    assert_eq!(last_delay(&mut subscriber, now), Duration::ZERO);
    let request = subscriber.poll_request(now).unwrap();
    assert_eq!(request.headers()["accept"], "application/json");
    subscriber.handle_response(&head(406, &[]), now);
    subscriber.handle_end(Ok(()), now);
    now += last_delay(&mut subscriber, now);
    connect(&mut subscriber, now);
    assert_eq!(subscriber.poll_timeout(), None);
    now += 3600 * SECOND;
    subscriber.handle_input("data: x\n\n".into(), now);
    let item = items(&mut subscriber, now).pop().unwrap().unwrap();
    assert_eq!(item.event().unwrap().payload().as_text(), Some("x"));
}

/// The ways in which a request fails without a response.
#[derive(Clone, Copy, Debug)]
enum RequestFailure {
    Connect,
    Prepare,
    Other,
    Timeout,
}

#[test]
fn silent_server_is_noticed_by_its_heartbeats() {
    let start = Instant::now();
    let mut subscriber = subscriber(start);
    connect(&mut subscriber, start);
    let mut now = start;
    // The opening, an event, and heartbeats after 15 s each.
    for (input, wait) in [(":\n", 0), ("data: x\n\n", 7), (":\n", 15), (":\n", 15)] {
        now += wait * SECOND;
        subscriber.handle_input(input.into(), now);
        items(&mut subscriber, now);
    }
    let deadline = subscriber.poll_timeout().unwrap();
    assert_eq!(deadline, now + Duration::from_millis(37_500));
    subscriber.handle_timeout(deadline - SECOND);
    assert!(items(&mut subscriber, now).is_empty());
    subscriber.handle_timeout(deadline);
    let Some(Ok(ClientItem::Reconnecting { error, .. })) = items(&mut subscriber, deadline).pop()
    else {
        panic!()
    };
    assert!(error.unwrap().is_timeout());
}

#[test]
fn server_without_heartbeats_may_be_silent() {
    let now = Instant::now();
    let mut subscriber = subscriber(now);
    connect(&mut subscriber, now);
    subscriber.handle_input("data: x\n\n".into(), now);
    items(&mut subscriber, now);
    assert_eq!(subscriber.poll_timeout(), None);
}

/// The machine sleeps for an hour, in every state: the subscriber then connects at once, or soon.
#[test]
fn jump_of_the_clock_leads_to_a_new_request() {
    let start = Instant::now();
    let later = start + 3600 * SECOND;
    let mut waiting = subscriber(start);
    waiting.poll_request(start).unwrap();
    waiting.handle_request_error("refused".into(), start);
    items(&mut waiting, start);
    waiting.handle_timeout(later);
    assert!(waiting.poll_request(later).is_some());

    let mut requesting = subscriber(start);
    requesting.poll_request(start).unwrap();

    let mut reading = subscriber(start);
    connect(&mut reading, start);
    for seconds in [0, 15, 30] {
        reading.handle_input(":\n".into(), start + seconds * SECOND);
        items(&mut reading, start + seconds * SECOND);
    }
    for mut subscriber in [requesting, reading] {
        subscriber.handle_timeout(later);
        let delay = last_delay(&mut subscriber, later);
        assert!(delay <= SECOND);
        assert!(subscriber.poll_request(later + delay).is_some());
    }
}

#[test]
fn long_polls_follow_each_other_at_once() {
    let mut now = Instant::now();
    let mut subscriber = subscriber_for(Transport::LongPoll, now);
    let head = |cursor| {
        head(
            200,
            &[
                ("content-type", "application/json"),
                ("last-event-id", cursor),
            ],
        )
    };

    let request = subscriber.poll_request(now).unwrap();
    assert!(!request.headers().contains_key("last-event-id"));
    subscriber.handle_response(&head("2"), now);
    subscriber.handle_input("[{\"id\":\"1\",\"data\":\"a\"}".into(), now);
    assert_eq!(items(&mut subscriber, now).len(), 1);
    subscriber.handle_input("]".into(), now);
    subscriber.handle_end(Ok(()), now);
    // The event, and the cursor after the batch.
    assert_eq!(items(&mut subscriber, now).len(), 2);

    // A poll that waits in vain leads to the next one at once.
    let request = subscriber.poll_request(now).unwrap();
    assert_eq!(request.headers()["last-event-id"], "2");
    now += 25 * SECOND;
    subscriber.handle_response(&head("2"), now);
    subscriber.handle_input("[]".into(), now);
    subscriber.handle_end(Ok(()), now);
    assert!(items(&mut subscriber, now).is_empty());

    // A poll that does not wait leads to a delay.
    subscriber.poll_request(now).unwrap();
    subscriber.handle_response(&head("2"), now);
    subscriber.handle_input("[]".into(), now);
    subscriber.handle_end(Ok(()), now);
    let Some(Ok(ClientItem::Reconnecting { error, .. })) = items(&mut subscriber, now).pop() else {
        panic!()
    };
    assert!(error.unwrap().is_poll_without_events());
}

/// A long poll may have a body in a streaming format, which is cut or falls silent after its events.
#[test]
fn failed_long_poll_with_events_resets_the_backoff() {
    for is_cut in [true, false] {
        let delays = delays_after_failed_polls(is_cut, |round| round + 2);
        assert!(delays.iter().all(|delay| *delay <= SECOND), "{delays:?}");
        let delays = delays_after_failed_polls(is_cut, |_| 1);
        assert!(delays.iter().any(|delay| *delay > SECOND), "{delays:?}");
    }
}

/// Returns the delays after 100 long polls, each of which brings the event with the id that `id` returns, and is then cut or falls silent. The
/// first poll begins after the event 1.
fn delays_after_failed_polls(is_cut: bool, id: impl Fn(u64) -> u64) -> Vec<Duration> {
    let mut now = Instant::now();
    let mut config = SubscriberConfig::new();
    config.transports = [Transport::LongPoll].into();
    config.poll_timeout = 10 * SECOND;
    let uri = Uri::from_static("http://host/feed");
    let mut subscriber = Subscriber::new(Arc::new(config), uri, Some(1.into()), now);
    let poll = |round| {
        subscriber.poll_request(now).unwrap();
        let head = head(200, &[("content-type", "application/x-ndjson")]);
        subscriber.handle_response(&head, now);
        let line = format!("{{\"id\":\"{}\",\"data\":1}}\n", id(round));
        subscriber.handle_input(line.into(), now);
        let read = items(&mut subscriber, now);
        assert!(matches!(read.last(), Some(Ok(ClientItem::Event { .. }))));
        if is_cut {
            subscriber.handle_end(Err("cut".into()), now);
        } else {
            now += 10 * SECOND;
            subscriber.handle_timeout(now);
        }
        let delay = last_delay(&mut subscriber, now);
        now += delay;
        delay
    };
    (0..100).map(poll).collect()
}

/// A response without a length ends without an error where the network has cut it. Another poll may get the whole batch.
#[test]
fn beginning_of_a_batch_is_polled_again() {
    let now = Instant::now();
    let cases: [(&[u8], bool, bool); 7] = [
        (b"[{\"id\":\"1\",\"da", false, true),
        (b"", false, true),
        (b"[1}", false, false),
        (b"[1,2", true, true),
        (b"[\"\xc3", true, true),
        (b"", true, true),
        (b"[1}", true, false),
    ];
    for (body, is_data_only, is_cut) in cases {
        let mut config = SubscriberConfig::new();
        config.transports = [Transport::LongPoll].into();
        config.is_data_only = is_data_only;
        let uri = Uri::from_static("http://host/feed");
        let mut subscriber = Subscriber::new(Arc::new(config), uri, None, now);
        subscriber.poll_request(now).unwrap();
        subscriber.handle_response(&head(200, &[("content-type", "application/json")]), now);
        subscriber.handle_input(body.into(), now);
        subscriber.handle_end(Ok(()), now);
        match items(&mut subscriber, now).pop().unwrap() {
            Ok(ClientItem::Reconnecting { error, .. }) => {
                assert!(is_cut && error.unwrap().is_cut(), "{body:?}");
            }
            end => assert!(!is_cut && end.unwrap_err().is_malformed(), "{body:?}"),
        }
    }
}

/// The records of a batch are read one at a time, so that a batch needs no more memory than its text.
#[test]
fn records_before_a_malformed_one_are_yielded() {
    let now = Instant::now();
    let mut subscriber = subscriber_for(Transport::LongPoll, now);
    subscriber.poll_request(now).unwrap();
    subscriber.handle_response(&head(200, &[("content-type", "application/json")]), now);
    subscriber.handle_input("[{\"id\":\"1\",\"data\":1},{\"id\":7}]".into(), now);
    subscriber.handle_end(Ok(()), now);
    let mut read = items(&mut subscriber, now);
    assert!(read.pop().unwrap().unwrap_err().is_malformed());
    assert!(matches!(read.pop(), Some(Ok(ClientItem::Event { .. }))));
    assert!(subscriber.is_terminated());
    assert_eq!(subscriber.cursor(), Some(&1.into()));
}

#[test]
fn empty_id_clears_the_cursor() {
    let now = Instant::now();
    let mut subscriber = subscriber(now);
    connect(&mut subscriber, now);
    subscriber.handle_input("id: 7\n\ndata: a\n\nid\ndata: b\n\n".into(), now);
    assert_eq!(items(&mut subscriber, now).len(), 4);
    assert_eq!(subscriber.cursor(), None);
}

/// SSE names an event's id in the field `event_id` if the field `id` is another cursor. The field is empty if the event has no id. Without the field `id`,
/// the cursor stays.
#[test]
fn event_id_is_not_the_cursor() {
    for (fields, id, cursor) in [
        ("id: 7\nevent_id: 3", Some("3"), Some("7")),
        ("event_id: 3\nid: 7", Some("3"), Some("7")),
        ("id: 7\nevent_id: 7", Some("7"), Some("7")),
        ("id: 7\nevent_id:", None, Some("7")),
        ("event_id\nid: 7", None, Some("7")),
        ("id: 7", Some("7"), Some("7")),
        ("event_id: 3", None, Some("1")),
        ("id\nevent_id: 3", None, None),
    ] {
        let now = Instant::now();
        let mut subscriber = subscriber(now);
        connect(&mut subscriber, now);
        let input = format!("id: 1\ndata: a\n\n{fields}\ndata: b\n\n");
        subscriber.handle_input(input.into(), now);
        let item = items(&mut subscriber, now).pop().unwrap().unwrap();
        let own_cursor = match &item {
            ClientItem::Event { cursor, .. } => cursor.as_ref().map(EventId::as_str),
            item => panic!("{item:?}"),
        };
        let has_cursor = fields.contains("id: 7") && id != Some("7");
        assert_eq!(own_cursor, cursor.filter(|_| has_cursor), "{fields}");
        let new_cursor = item.cursor().map(EventId::as_str);
        assert_eq!(new_cursor, cursor.filter(|id| *id == "7"), "{fields}");
        let event = item.into_event().unwrap();
        assert_eq!(event.id().map(EventId::as_str), id, "{fields}");
        let moved = subscriber.cursor().map(EventId::as_str);
        assert_eq!(moved, cursor, "{fields}");
    }
}

/// An id that cannot be sent back has the same effect however the input is cut.
#[test]
fn invalid_id_without_an_event_is_ignored() {
    for pieces in [
        &["id: 1\ndata: a\n\nid: a b\n\n", "id: 2\ndata: b\n\n"][..],
        &["id: 1\ndata: a\n\nid: a b\n\nid: 2\ndata: b\n\n"],
    ] {
        let now = Instant::now();
        let mut subscriber = subscriber(now);
        connect(&mut subscriber, now);
        for piece in pieces {
            subscriber.handle_input((*piece).into(), now);
            assert!(items(&mut subscriber, now).iter().all(Result::is_ok));
        }
        assert_eq!(subscriber.cursor(), Some(&2.into()));
    }
}

/// The cursor is that of the items that were returned, not of the bytes that have arrived.
#[test]
fn cursor_follows_the_returned_items() {
    let now = Instant::now();
    let mut subscriber = subscriber(now);
    connect(&mut subscriber, now);
    subscriber.handle_input("id: 1\ndata: a\n\nid: 2\ndata: b\n\n".into(), now);
    subscriber.poll_item(|| now); // Connected
    assert_eq!(subscriber.cursor(), None);
    for number in [1, 2] {
        subscriber.poll_item(|| now);
        assert_eq!(subscriber.cursor(), Some(&number.into()));
    }
}

/// A service in the same process may take a URL that is only a path.
#[test]
fn redirects_are_followed_to_valid_urls_of_the_host() {
    for (from, location, expected) in [
        ("/a/feed?q", "/c", Some("/c")),
        ("/a/feed?q", "c?d", Some("/a/c?d")),
        ("/a/feed?q", "?d", Some("/a/feed?d")),
        ("/a/feed?q", "//host/c", None),
        ("/a/feed?q", "http://host/c", None),
        ("/a/feed?q", "javascript:alert(1)", None),
        ("host", "c", None),
        ("*", "c", Some("/c")),
        ("http://host/a", "//host:80/c", Some("http://host:80/c")),
        ("http://host/a", "//host:/c", Some("http://host:/c")),
        ("http://host/a", "//host:+80/c", None),
        ("http://host/a", "//host:80(c", None),
        ("http://host/a", "//host:65536/c", None),
    ] {
        let now = Instant::now();
        let config = Arc::new(SubscriberConfig::new());
        let mut subscriber = Subscriber::new(config, Uri::from_static(from), None, now);
        subscriber.poll_request(now).unwrap();
        subscriber.handle_response(&head(307, &[("location", location)]), now);
        let request = subscriber.poll_request(now);
        let uri = request.map(|request| request.uri().to_string());
        assert_eq!(uri.as_deref(), expected, "{from} {location}");
        if expected.is_none() {
            let error = subscriber.poll_item(|| now).unwrap().unwrap_err();
            assert!(error.is_redirect());
        }
    }
}

#[test]
fn retry_after_is_a_floor() {
    let now = Instant::now();
    let mut subscriber = subscriber(now);
    subscriber.poll_request(now).unwrap();
    subscriber.handle_response(&head(503, &[("retry-after", "7")]), now);
    subscriber.handle_end(Ok(()), now);
    let delay = last_delay(&mut subscriber, now);
    assert!((7 * SECOND..=14 * SECOND).contains(&delay));
}

/// The error follows although no call of `poll_transmit` comes between the input and the end.
#[cfg(feature = "websocket")]
#[test]
fn violation_before_the_end_is_reported() {
    let now = Instant::now();
    let mut subscriber = subscriber_for(Transport::WebSocket, now);
    connect_websocket(&mut subscriber, now);
    assert_eq!(items(&mut subscriber, now).len(), 1);
    subscriber.handle_input("\u{3}".into(), now);
    assert!(items(&mut subscriber, now).is_empty());
    subscriber.handle_end(Ok(()), now);
    let error = subscriber.poll_item(|| now).unwrap().unwrap_err();
    assert!(error.is_malformed());
    assert!(subscriber.is_terminated());
}

/// `eventsource/format-mime-*` of <https://github.com/web-platform-tests/wpt>: the media type decides, and no parameter.
#[test]
fn media_type_of_an_event_stream_may_have_parameters() {
    for (content_type, expected) in [
        ("text/event-stream", true),
        ("text/event-stream;", true),
        ("text/event-stream;charset=windows-1252", true),
        ("Text/Event-Stream; bogus", true),
        ("x-bogus", false),
        ("text/event-stream-bogus", false),
        ("text/x-bogus", false),
    ] {
        let now = Instant::now();
        let mut subscriber = subscriber(now);
        subscriber.poll_request(now).unwrap();
        subscriber.handle_response(&head(200, &[("content-type", content_type)]), now);
        subscriber.handle_input("data: x\n\n".into(), now);
        subscriber.handle_end(Ok(()), now);
        let is_read = items(&mut subscriber, now).iter().all(Result::is_ok);
        assert_eq!(is_read, expected, "{content_type}");
    }
}

/// A line of NDJSON at the end of a body may have been cut off, which a number does not show.
#[test]
fn number_without_a_line_break_is_ignored() {
    for (last, expected) in [
        ("12", 1),
        ("12\n", 2),
        ("{\"n\":12}", 2),
        ("true", 2),
        ("[1", 1),
    ] {
        let now = Instant::now();
        let mut config = SubscriberConfig::new();
        config.is_data_only = true;
        let uri = Uri::from_static("http://host/feed");
        let mut subscriber = Subscriber::new(Arc::new(config), uri, None, now);
        subscriber.poll_request(now).unwrap();
        subscriber.handle_response(&head(200, &[("content-type", "application/x-ndjson")]), now);
        subscriber.handle_input(format!("1\n{last}").into(), now);
        let mut read = items(&mut subscriber, now);
        subscriber.handle_end(Ok(()), now);
        read.extend(items(&mut subscriber, now));
        let events = read.iter().flatten().filter_map(ClientItem::event);
        assert_eq!(events.count(), expected, "{last}");
    }
}

#[test]
fn idle_subscriber_is_small() {
    assert!(
        size_of::<Subscriber>() <= 768,
        "{}",
        size_of::<Subscriber>()
    );
}

/// Another crate of the program can turn the feature on.
#[cfg(feature = "deflate")]
#[test]
fn compression_is_offered_only_if_asked_for() {
    let now = Instant::now();
    for is_offered in [false, true] {
        let mut config = SubscriberConfig::new();
        config.transports = [Transport::WebSocket].into();
        if is_offered {
            config.deflate = true;
        }
        let uri = Uri::from_static("http://host/feed");
        let mut subscriber = Subscriber::new(Arc::new(config), uri, None, now);
        let request = subscriber.poll_request(now).unwrap();
        let offer = request.headers().get("sec-websocket-extensions");
        assert_eq!(offer.is_some(), is_offered);
    }
}
