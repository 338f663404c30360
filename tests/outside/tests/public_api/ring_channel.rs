//! The source of this crate over the transports of tower-push, on real sockets.

use std::sync::{Arc, Mutex};

use testkit::{
    HttpConnection, HttpVersion, StreamingResponse, TestServer,
    websocket::{self, WebSocketConnection},
};
use tower_push::{
    BoxError, Error, EventId, Guard,
    guard::{CloseReason, Observer, StreamInfo},
    service,
    source::StartPosition,
    transport::{LongPoll, Negotiate, WebSocket},
};
use tower_push_outside_tests::{LagPolicy, RingChannel};

use crate::support::{LineReader, expect_close, wait_for};

/// A server for one channel, whose log holds 4 events, behind a guard.
struct ChannelServer {
    channel: RingChannel,
    guard: Guard,
    server: TestServer,
}

impl ChannelServer {
    async fn new(lag_policy: LagPolicy) -> Self {
        Self::with_guard(lag_policy, Guard::new()).await
    }

    async fn with_guard(lag_policy: LagPolicy, guard: Guard) -> Self {
        let channel = RingChannel::builder().max_events(4).lag_policy(lag_policy);
        let channel = channel.build();
        let transport = guard.wrap(Negotiate::new());
        let server = TestServer::start(service(channel.clone()).transport(transport)).await;
        Self {
            channel,
            guard,
            server,
        }
    }

    /// Publishes the numbers of the range. Subscribers cannot read in between: they run on the thread of the test.
    fn publish(&self, numbers: std::ops::Range<u32>) -> Vec<EventId> {
        let publish = |number: u32| self.channel.publish(number.to_string()).unwrap();
        numbers.map(publish).collect()
    }

    async fn get(&self, path: &str) -> StreamingResponse {
        let mut client = HttpConnection::connect(&self.server, HttpVersion::Http1).await;
        client.get(path, &[]).await
    }

    /// Requests lines. The response must have the status 200.
    async fn get_lines(&self, path: &str) -> LineReader {
        let response = self.get(path).await;
        assert_eq!(response.head.status, 200);
        LineReader::new(response)
    }

    /// Waits until one stream is open.
    async fn wait_until_open(&self) {
        wait_for(&self.guard, |guard| guard.counts().open() == 1).await;
    }
}

/// Reads up to the close frame.
async fn close_code(socket: &mut WebSocketConnection) -> u16 {
    loop {
        let frame = socket.next_frame().await.expect("a close frame");
        if let Some((code, _)) = frame.close_code_and_reason() {
            return code;
        }
    }
}

/// Records for each error of a stream whether it says that the subscriber was too slow.
#[derive(Clone, Default)]
struct ErrorLog(Arc<Mutex<Vec<bool>>>);

impl Observer for ErrorLog {
    fn on_failure(&self, _: &StreamInfo, error: &BoxError) {
        let is_lagged = error.downcast_ref().is_some_and(Error::is_lagged);
        self.0.lock().unwrap().push(is_lagged);
    }
}

// Lag.

#[tokio::test]
async fn laggard_on_websocket_gets_3008() {
    for version in HttpVersion::ALL {
        let errors = ErrorLog::default();
        let guard = Guard::builder().observer(errors.clone()).build();
        let setup = ChannelServer::with_guard(LagPolicy::Disconnect, guard).await;
        let mut socket = websocket::connect(&setup.server, version, "/", &[]).await;
        setup.wait_until_open().await;
        setup.publish(0..100);
        assert_eq!(close_code(&mut socket).await, 3008, "{version:?}");
        drop(socket);
        expect_close(&setup.guard, CloseReason::Lagged).await;
        assert_eq!(*errors.0.lock().unwrap(), [true]);
    }
}

#[tokio::test]
async fn laggard_on_sse_gets_gap() {
    let setup = ChannelServer::new(LagPolicy::Gap).await;
    let mut reader = setup.get_lines("/?transport=sse").await;
    setup.wait_until_open().await;
    setup.publish(0..2);
    assert_eq!(reader.expect(2).await, ["0", "1"]);
    setup.publish(2..100);
    let expected = ["gap lagged 94", "96", "97", "98", "99"];
    assert_eq!(reader.expect(5).await, expected);
    assert_eq!(setup.guard.counts().gaps, 1);
    assert_eq!(setup.guard.counts().events, 6);
}

#[tokio::test]
async fn laggard_on_sse_is_aborted_and_finds_gap() {
    let setup = ChannelServer::new(LagPolicy::Disconnect).await;
    let mut reader = setup.get_lines("/?transport=sse").await;
    setup.wait_until_open().await;
    setup.publish(0..1);
    assert_eq!(reader.expect(1).await, ["0"]);
    setup.publish(1..10);
    assert!(reader.rest().await.is_err());
    expect_close(&setup.guard, CloseReason::Lagged).await;
    let cursor = reader.cursor().unwrap();
    let path = format!("/?transport=sse&last_event_id={cursor}");
    let expected = ["gap expired 5", "6", "7", "8", "9"];
    assert_eq!(setup.get_lines(&path).await.expect(5).await, expected);
}

// Cursors.

#[tokio::test]
async fn cursor_resumes_on_every_transport() {
    let setup = ChannelServer::new(LagPolicy::Gap).await;
    let ids = setup.publish(0..4);
    for transport in ["sse", "ndjson", "json-seq", "multipart", "long-poll"] {
        let path = format!("/?transport={transport}&last_event_id={}", ids[1]);
        let lines = setup.get_lines(&path).await.expect(2).await;
        assert_eq!(lines, ["2", "3"], "{transport}");
    }
    let path = format!("/?last_event_id={}", ids[1]);
    let mut socket = websocket::connect(&setup.server, HttpVersion::Http1, &path, &[]).await;
    for expected in ["2", "3"] {
        let frame = socket.next_frame().await.unwrap();
        assert_eq!(frame.payload, expected.as_bytes());
    }
}

#[tokio::test]
async fn old_cursor_gets_expired_gap() {
    let setup = ChannelServer::new(LagPolicy::Gap).await;
    let ids = setup.publish(0..10);
    for (cursor, expected) in [
        (5, None),
        (4, Some("gap expired 1")),
        (0, Some("gap expired 5")),
    ] {
        let path = format!("/?transport=ndjson&last_event_id={}", ids[cursor]);
        let mut reader = setup.get_lines(&path).await;
        if let Some(gap) = expected {
            assert_eq!(reader.expect(1).await, [gap]);
        }
        assert_eq!(reader.expect(4).await, ["6", "7", "8", "9"]);
    }
}

#[tokio::test]
async fn foreign_or_unreadable_cursor_gets_epoch_gap() {
    let setup = ChannelServer::new(LagPolicy::Gap).await;
    setup.publish(0..6);
    let foreign = RingChannel::new().publish("x").unwrap();
    for cursor in [foreign.as_str(), "not%20readable", "a&lastEventId=b"] {
        for transport in ["sse", "ndjson", "long-poll"] {
            let path = format!("/?transport={transport}&last_event_id={cursor}");
            let lines = setup.get_lines(&path).await.expect(5).await;
            assert_eq!(lines, ["gap epoch null", "2", "3", "4", "5"], "{path}");
        }
    }
}

#[tokio::test]
async fn start_position_is_respected() {
    for (start, expected) in [
        (StartPosition::Now, &["6"][..]),
        (StartPosition::Oldest, &["2", "3", "4", "5", "6"]),
        (StartPosition::Last(2), &["4", "5", "6"]),
        (StartPosition::Last(9), &["2", "3", "4", "5", "6"]),
    ] {
        let channel = RingChannel::builder().max_events(4).start(start.clone());
        let channel = channel.build();
        let guard = Guard::new();
        let transport = guard.wrap(Negotiate::new());
        let server = TestServer::start(service(channel.clone()).transport(transport)).await;
        let setup = ChannelServer {
            channel,
            guard,
            server,
        };
        setup.publish(0..6);
        let mut reader = setup.get_lines("/?transport=ndjson").await;
        let before = reader.expect(expected.len() - 1).await;
        setup.publish(6..7);
        let after = reader.expect(1).await;
        assert_eq!([before, after].concat(), expected, "{start:?}");
    }
}

// End.

#[tokio::test]
async fn closed_channel_finishes_its_subscribers() {
    let setup = ChannelServer::new(LagPolicy::Gap).await;
    let mut reader = setup.get_lines("/?transport=sse").await;
    setup.wait_until_open().await;
    setup.publish(0..2);
    setup.channel.close();
    assert!(setup.channel.publish("late").unwrap_err().is_closed());
    assert_eq!(reader.rest().await.unwrap(), ["0", "1", "end true"]);
    expect_close(&setup.guard, CloseReason::Finished).await;
    assert_eq!(reader.cursor(), Some(EventId::FINISHED));
    for path in ["/?transport=sse", "/?last_event_id=~finished"] {
        let response = setup.get(path).await;
        assert_eq!(response.head.status, 204, "{path}");
    }
    let mut socket = websocket::connect(&setup.server, HttpVersion::Http1, "/", &[]).await;
    assert_eq!(close_code(&mut socket).await, 1000);
}

// Long-polling.

#[tokio::test]
async fn long_poll_follows_the_channel() {
    let channel = RingChannel::builder()
        .max_events(4)
        .start(StartPosition::Oldest)
        .build();
    let guard = Guard::new();
    let transport = guard.wrap(LongPoll::new());
    let server = TestServer::start(service(channel.clone()).transport(transport)).await;
    let setup = ChannelServer {
        channel,
        guard,
        server,
    };

    // A poll waits for the first event.
    let waiting = tokio::spawn({
        let mut client = HttpConnection::connect(&setup.server, HttpVersion::Http1).await;
        async move { LineReader::new(client.get("/", &[]).await).rest().await }
    });
    setup.wait_until_open().await;
    setup.publish(0..1);
    assert_eq!(waiting.await.unwrap().unwrap(), ["0"]);

    // The next polls resume with the cursor, and do not repeat anything.
    setup.publish(1..3);
    let mut poll = setup.get_lines("/").await;
    assert_eq!(poll.rest().await.unwrap(), ["0", "1", "2"]);
    let mut cursor = poll.cursor().unwrap().to_owned();
    for (numbers, expected) in [
        (3..4, &["3"][..]),
        (4..10, &["gap expired 2", "6", "7", "8", "9"]),
    ] {
        setup.publish(numbers);
        let path = format!("/?last_event_id={cursor}");
        let mut poll = setup.get_lines(&path).await;
        assert_eq!(poll.rest().await.unwrap(), expected);
        cursor = poll.cursor().unwrap().to_owned();
    }
    let path = format!("/?timeout=0&last_event_id={cursor}");
    assert!(
        setup
            .get_lines(&path)
            .await
            .rest()
            .await
            .unwrap()
            .is_empty()
    );
    let polls = 5;
    wait_for(&setup.guard, |guard| {
        guard.counts().closed(CloseReason::Answered) == polls
    })
    .await;

    setup.channel.close();
    let finished = setup.get(&format!("/?last_event_id={cursor}")).await;
    assert_eq!(finished.head.status, 204);
}

#[tokio::test]
async fn websocket_without_place_for_gaps_closes_with_3010() {
    let setup = ChannelServer::new(LagPolicy::Gap).await;
    let mut socket = websocket::connect(&setup.server, HttpVersion::Http1, "/", &[]).await;
    setup.wait_until_open().await;
    setup.publish(0..100);
    assert_eq!(close_code(&mut socket).await, 3010);
    drop(socket);
    expect_close(&setup.guard, CloseReason::Failed).await;
}

#[tokio::test]
async fn single_transport_serves_the_channel() {
    let channel = RingChannel::new();
    let server = TestServer::start(service(channel.clone()).transport(WebSocket::new())).await;
    let mut socket = websocket::connect(&server, HttpVersion::Http1, "/", &[]).await;
    channel.publish("hello").unwrap();
    assert_eq!(socket.next_frame().await.unwrap().payload, b"hello");
}
