//! The transport of this crate under a guard of tower-push, on real sockets.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http::{StatusCode, request::Parts};
use testkit::{HttpConnection, HttpVersion, TestServer};
use tokio::{spawn, sync::mpsc};
use tower_push::{
    BoxError, Channel, Drain, Error, Event, EventId, Gap, GapReason, Guard, Item, KeepAlive,
    PushSource,
    event::Payload,
    guard::{
        Admission, CloseReason, DrainOutcome, DrainPlan, GuardBuilder, Observer, RefusalReason,
        StreamInfo,
    },
    layer::SourceService,
    service,
    source::{Rejection, StartPosition, Subscription, channel::LagPolicy, source_fn},
    transport::{Negotiate, Transport},
};
use tower_push_outside_tests::{LengthDelimited, RecordKind};
use tracing::{Span, info_span};

use crate::support::{LengthDelimitedReader, expect_close, wait_for};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Serves `source` over the transport under `guard`.
async fn serve<S>(guard: &Guard, source: S) -> TestServer
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    TestServer::start(guarded_service(guard, source, LengthDelimited::new())).await
}

fn guarded_service<S: PushSource + Clone + Send + 'static>(
    guard: &Guard,
    source: S,
    transport: LengthDelimited,
) -> SourceService<S, impl Transport> {
    service(source).transport(guard.wrap(transport))
}

/// A source that yields clones of `items`, and then stays silent if they do not end its streams.
fn items_then_silence(
    items: Vec<Item>,
) -> impl PushSource<Stream: Send> + Clone + Send + Sync + 'static {
    source_fn(move |_| async move { Ok(stream::iter(items).chain(stream::pending())) })
}

fn text_event(text: &str) -> Item {
    Item::Event(Event::text(text))
}

// Records.

#[tokio::test]
async fn records_arrive_on_http1_and_http2() -> Result<(), Error> {
    let with_cursor = Item::EventWithCursor {
        event: Event::text("old").with_id(3)?,
        cursor: EventId::from(7),
    };
    let items = vec![
        Item::Cursor(EventId::from(1)),
        Item::Event(Event::text("hello").with_id(2)?),
        with_cursor,
        Item::from(Gap::new(GapReason::Lagged).resumed(EventId::from(8))),
        Item::Finished,
    ];
    let guard = Guard::new();
    let transports = Negotiate::new().add_transport(LengthDelimited::new());
    let source = items_then_silence(items);
    let server = TestServer::start(service(source).transport(guard.wrap(transports))).await;
    for (version, path) in HttpVersion::ALL
        .into_iter()
        .zip(["/?transport=length-delimited", "/"])
    {
        let mut client = HttpConnection::connect(&server, version).await;
        let accept = ("accept", "application/x-length-delimited");
        let mut reader = LengthDelimitedReader::new(client.get(path, &[accept]).await);
        let mut expect = async |kind, id: Option<&str>, payload| {
            let record = reader.expect().await;
            assert_eq!((record.kind, record.id.as_deref()), (kind, id));
            assert_eq!(record.text(), payload);
        };
        expect(RecordKind::Cursor, Some("1"), "").await;
        expect(RecordKind::Event, Some("2"), "hello").await;
        expect(RecordKind::Event, Some("3"), "old").await;
        expect(RecordKind::Cursor, Some("7"), "").await;
        let gap = r#"{"reason":"lagged","requested":null,"resumed":"8","missed":null}"#;
        expect(RecordKind::Gap, Some("8"), gap).await;
        let end = r#"{"finished":true}"#;
        expect(RecordKind::End, Some("~finished"), end).await;
        assert_eq!(reader.next().await.unwrap(), None);
    }
    Ok(())
}

/// Records for each event that a stream takes whether it is encoded already.
#[derive(Clone, Default)]
struct EncodedLog(Arc<Mutex<Vec<bool>>>);

impl Observer for EncodedLog {
    fn on_event(&self, _: &StreamInfo, event: &Event) {
        let is_encoded = event.is_encoded::<LengthDelimited>();
        self.0.lock().unwrap().push(is_encoded);
    }
}

#[tokio::test]
async fn event_is_encoded_once_for_all_subscribers() {
    let log = EncodedLog::default();
    let guard = Guard::builder().observer(log.clone()).build();
    let channel = Channel::new();
    let server = serve(&guard, channel.clone()).await;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
        reader.expect_kind(RecordKind::Cursor).await;
        readers.push(reader);
    }
    channel.publish("shared").unwrap();
    for reader in &mut readers {
        assert_eq!(reader.expect_event().await, "shared");
    }
    assert_eq!(*log.0.lock().unwrap(), [false, true, true]);
}

#[tokio::test]
async fn idle_stream_sends_heartbeats() {
    let keep_alive = KeepAlive::new().interval(20 * MILLISECOND);
    let transport = LengthDelimited::new().keep_alive(keep_alive);
    let source = items_then_silence(vec![text_event("first")]);
    let server = TestServer::start(guarded_service(&Guard::new(), source, transport)).await;
    let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
    assert_eq!(reader.expect_event().await, "first");
    for _ in 0..3 {
        reader.expect_kind(RecordKind::Heartbeat).await;
    }
}

#[tokio::test]
async fn source_gets_messages_of_the_client() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let source = source_fn(move |subscription: Subscription| {
        let (sender, messages) = (sender.clone(), subscription.client_messages());
        async move {
            let mut messages = messages.expect("the transport carries messages");
            assert!(subscription.client_messages().is_none());
            spawn(async move {
                while let Some(Payload::Text(message)) = messages.next().await {
                    sender.send(Some(message)).unwrap();
                }
                sender.send(None).unwrap();
            });
            Ok(stream::iter(["hello"]).chain(stream::pending()))
        }
    });
    let server = serve(&Guard::new(), source).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    // More messages than the queue has room for.
    let expected: Vec<_> = (0..70).map(|number: u32| number.to_string()).collect();
    let headers = expected.iter().map(|text| ("x-client-message", &**text));
    let headers: Vec<_> = headers.collect();
    let mut reader = LengthDelimitedReader::new(client.get("/", &headers).await);
    assert_eq!(reader.expect_event().await, "hello");
    for message in expected {
        assert_eq!(received.recv().await.flatten(), Some(message));
    }
    drop((reader, client));
    assert_eq!(received.recv().await, Some(None), "the client has left");
}

// Responses without a stream.

#[tokio::test]
async fn head_request_and_refusal_open_no_stream() {
    let guard = Guard::new();
    let source =
        source_fn(
            async |subscription: Subscription| match subscription.head().uri.path() {
                "/forbidden" => Err(Rejection::new(StatusCode::FORBIDDEN)),
                _ => Ok(stream::pending::<Event>()),
            },
        );
    let server = serve(&guard, source).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let head = client.send_request("HEAD", "/", &[]).await;
    assert_eq!(head.head.status, 200);
    let content_type = head.header("content-type");
    assert_eq!(content_type, Some("application/x-length-delimited"));
    assert_eq!(head.header("content-length"), None);
    head.discard_rest().await;
    let forbidden = client.get("/forbidden", &[]).await;
    assert_eq!(forbidden.head.status, 403);
    assert_eq!(guard.counts().opened, 0);
    assert_eq!(guard.counts().refused(RefusalReason::Source), 1);
}

#[tokio::test]
async fn admission_limits_the_transport() {
    let admission = Admission::builder().max_streams(1).retry(10 * SECOND);
    let guard = Guard::builder().admission(&admission.build()).build();
    let server = serve(&guard, Channel::new()).await;
    let first = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let refused = client.get("/", &[]).await;
    assert_eq!(refused.head.status, 503);
    let retry: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((5..=15).contains(&retry), "{retry}");
    refused.discard_rest().await;
    assert_eq!(guard.counts().refused(RefusalReason::Full), 1);
    drop(first);
    expect_close(&guard, CloseReason::Left).await;
    assert_eq!(client.get("/", &[]).await.head.status, 200);
}

// Counts and close reasons.

#[tokio::test]
async fn guard_counts_streams_events_bytes_and_gaps() {
    let guard = Guard::new();
    let gap = Item::from(Gap::new(GapReason::Lagged).missed(2));
    let items = vec![text_event("four"), gap, text_event("sixsix")];
    let server = serve(&guard, items_then_silence(items)).await;
    let mut readers = Vec::new();
    for version in HttpVersion::ALL {
        let mut reader = LengthDelimitedReader::get(&server, version, "/").await;
        assert_eq!(reader.expect_event().await, "four");
        reader.expect_kind(RecordKind::Gap).await;
        assert_eq!(reader.expect_event().await, "sixsix");
        readers.push(reader);
    }
    let counts = guard.counts();
    assert_eq!((counts.opened, counts.open()), (2, 2));
    assert_eq!(counts.open_by_transport["length-delimited"], 2);
    assert_eq!((counts.events, counts.bytes, counts.gaps), (4, 20, 2));
    drop(readers);
    wait_for(&guard, |guard| {
        guard.counts().closed(CloseReason::Left) == 2
    })
    .await;
    assert_eq!(guard.counts().open(), 0);
}

#[tokio::test]
async fn each_end_of_the_source_has_its_close_reason() {
    for (item, reason, end) in [
        (None, CloseReason::Ended, r#"{"finished":false}"#),
        (
            Some(Item::Ended { retry: SECOND }),
            CloseReason::Ended,
            r#"{"finished":false,"retry":1000}"#,
        ),
        (
            Some(Item::Finished),
            CloseReason::Finished,
            r#"{"finished":true}"#,
        ),
        (
            Some(Item::Expired),
            CloseReason::CredentialExpired,
            r#"{"finished":false}"#,
        ),
    ] {
        let guard = Guard::new();
        let items: Vec<_> = [text_event("last")].into_iter().chain(item).collect();
        let source = source_fn(move |_| async move { Ok(stream::iter(items)) });
        let server = serve(&guard, source).await;
        let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
        assert_eq!(reader.expect_event().await, "last");
        assert_eq!(reader.expect_kind(RecordKind::End).await, end);
        expect_close(&guard, reason).await;
    }
}

#[tokio::test]
async fn failing_source_is_counted_and_aborts_the_response() {
    for version in HttpVersion::ALL {
        let guard = Guard::new();
        let source = source_fn(async |_| {
            let items: [Result<&str, BoxError>; 2] = [Ok("last"), Err("broken".into())];
            Ok(stream::iter(items))
        });
        let server = serve(&guard, source).await;
        let mut reader = LengthDelimitedReader::get(&server, version, "/").await;
        assert_eq!(reader.expect_event().await, "last");
        reader.expect_abort().await;
        expect_close(&guard, CloseReason::Failed).await;
    }
}

#[tokio::test]
async fn unsendable_event_counts_as_failure() {
    let guard = Guard::new();
    let source = items_then_silence(vec![text_event("short"), text_event("too long")]);
    let transport = LengthDelimited::new().max_payload_len(5);
    let server = TestServer::start(guarded_service(&guard, source, transport)).await;
    let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
    assert_eq!(reader.expect_event().await, "short");
    reader.expect_abort().await;
    expect_close(&guard, CloseReason::Failed).await;
}

#[tokio::test]
async fn laggard_of_a_channel_counts_as_lagged() {
    let guard = Guard::new();
    let channel = Channel::builder().max_events(4);
    let channel = channel.lag_policy(LagPolicy::Disconnect).build();
    let server = serve(&guard, channel.clone()).await;
    let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
    reader.expect_kind(RecordKind::Cursor).await;
    for number in 0..100 {
        channel.publish(number.to_string()).unwrap();
    }
    reader.expect_abort().await;
    expect_close(&guard, CloseReason::Lagged).await;
}

#[tokio::test]
async fn complete_response_counts_as_answered() {
    let guard = Guard::new();
    let channel = Channel::new().with_start(StartPosition::Oldest);
    for number in 0..4 {
        channel.publish(number.to_string()).unwrap();
    }
    let transport = LengthDelimited::new().max_events(2);
    let server = TestServer::start(guarded_service(&guard, channel, transport)).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let mut cursor = None;
    for expected in [["0", "1"], ["2", "3"]] {
        let path = cursor.map_or("/".to_owned(), |id: String| format!("/?last_event_id={id}"));
        let mut reader = LengthDelimitedReader::new(client.get(&path, &[]).await);
        assert_eq!(reader.expect_event().await, expected[0]);
        let record = reader.expect().await;
        assert_eq!(record.text(), expected[1]);
        assert_eq!(reader.next().await.unwrap(), None);
        cursor = record.id;
    }
    wait_for(&guard, |guard| {
        guard.counts().closed(CloseReason::Answered) == 2
    })
    .await;
}

// Early ends.

#[tokio::test]
async fn stream_ends_after_its_lifetime() {
    let guard = Guard::builder().max_lifetime(50 * MILLISECOND).build();
    let server = serve(&guard, Channel::new()).await;
    let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
    reader.expect_kind(RecordKind::Cursor).await;
    let end = reader.expect_kind(RecordKind::End).await;
    assert!(end.starts_with(r#"{"finished":false,"retry":"#), "{end}");
    expect_close(&guard, CloseReason::Aged).await;
}

#[tokio::test]
async fn stream_ends_when_it_expires() {
    let source = source_fn(async |subscription: Subscription| {
        subscription.expire_within(20 * MILLISECOND);
        Ok(stream::pending::<Event>())
    });
    let guard = Guard::new();
    let server = serve(&guard, source).await;
    let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
    let end = reader.expect_kind(RecordKind::End).await;
    assert_eq!(end, r#"{"finished":false}"#);
    expect_close(&guard, CloseReason::CredentialExpired).await;
}

#[tokio::test]
async fn drain_notifies_every_stream() {
    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let server = serve(&guard, Channel::new()).await;
    let mut readers = Vec::new();
    for number in 0..10 {
        let version = HttpVersion::ALL[number % HttpVersion::ALL.len()];
        let mut reader = LengthDelimitedReader::get(&server, version, "/").await;
        reader.expect_kind(RecordKind::Cursor).await;
        readers.push(reader);
    }
    assert_eq!(drain.open_streams(), readers.len());
    drain.start(DrainPlan::within(20 * SECOND).spread(50 * MILLISECOND));
    for reader in &mut readers {
        let end = reader.expect_kind(RecordKind::End).await;
        assert!(end.starts_with(r#"{"finished":false,"retry":"#), "{end}");
    }
    let DrainOutcome {
        notified,
        left,
        cut,
        ..
    } = drain.wait().await;
    assert_eq!((notified, left, cut), (readers.len(), 0, 0));
    assert_eq!(guard.counts().closed(CloseReason::Drained), 10);
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    assert_eq!(client.get("/", &[]).await.head.status, 503);
}

// Observers and spans.

/// Records the calls of a guard, each as one line.
#[derive(Clone, Default)]
struct CallLog(Arc<Mutex<Vec<String>>>);

impl CallLog {
    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn guard(&self) -> GuardBuilder {
        Guard::builder().observer(self.clone())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Observer for CallLog {
    fn make_span(&self, stream: &StreamInfo, _: &Subscription) -> Span {
        info_span!("stream", number = stream.number)
    }

    fn on_open(&self, stream: &StreamInfo, subscription: &Subscription) {
        let path = subscription.head().uri.path();
        self.push(format!("open {} {path}", stream.transport));
    }

    fn on_refusal(&self, head: &Parts, reason: RefusalReason) {
        self.push(format!("refusal {} {}", head.uri.path(), reason.name()));
    }

    fn on_event(&self, _: &StreamInfo, event: &Event) {
        self.push(format!("event {}", event.payload().as_text().unwrap()));
    }

    fn on_gap(&self, _: &StreamInfo, gap: &Gap) {
        self.push(format!("gap {}", gap.reason.name()));
    }

    fn on_failure(&self, _: &StreamInfo, error: &BoxError) {
        self.push(format!("failure {error}"));
    }

    fn on_close(&self, stream: &StreamInfo, reason: CloseReason, _: Duration) {
        self.push(format!("close {} {}", stream.number, reason.name()));
    }
}

#[tokio::test]
async fn observer_is_called_in_order() {
    let log = CallLog::default();
    let guard = log.guard().build();
    let gap = || Item::from(Gap::new(GapReason::Epoch));
    let failing = source_fn(async move |subscription: Subscription| {
        if subscription.head().uri.path() == "/no" {
            return Err(Rejection::new(StatusCode::FORBIDDEN));
        }
        let items = [Ok(text_event("a")), Ok(gap()), Err("broken")];
        Ok(stream::iter(items))
    });
    let server = serve(&guard, failing).await;
    let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/yes").await;
    reader.expect_abort().await;
    expect_close(&guard, CloseReason::Failed).await;
    let expected = [
        "open length-delimited /yes",
        "event a",
        "gap epoch",
        "failure broken",
        "close 1 failed",
    ];
    assert_eq!(log.take(), expected);
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    client.get("/no", &[]).await.discard_rest().await;
    assert_eq!(log.take(), ["refusal /no source"]);
}

thread_local! {
    /// The names of the spans that the thread has entered, and not left.
    static SPANS: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

/// Installs a subscriber that keeps `SPANS`. Each test runs on one thread.
fn record_spans() {
    use tracing::span::Id;
    use tracing_subscriber::{
        Layer, Registry,
        layer::{Context, SubscriberExt},
    };

    struct SpanNames;

    impl Layer<Registry> for SpanNames {
        fn on_enter(&self, id: &Id, context: Context<'_, Registry>) {
            let name = context.span(id).unwrap().name();
            SPANS.with_borrow_mut(|spans| spans.push(name));
        }

        fn on_exit(&self, _: &Id, _: Context<'_, Registry>) {
            SPANS.with_borrow_mut(Vec::pop);
        }
    }

    static SET: Once = Once::new();
    SET.call_once(|| {
        let subscriber = Registry::default().with(SpanNames);
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// A stream that yields the span in which it is polled.
fn current_spans() -> impl Stream<Item = String> {
    stream::poll_fn(|_| {
        let spans = SPANS.with_borrow(|spans| spans.join("/"));
        std::task::Poll::Ready(Some(spans))
    })
}

#[tokio::test]
async fn source_is_polled_in_the_span_of_the_stream() {
    record_spans();
    let guard = CallLog::default().guard().build();
    let source = source_fn(async |_| Ok(current_spans().take(3)));
    let server = serve(&guard, source).await;
    let mut reader = LengthDelimitedReader::get(&server, HttpVersion::Http1, "/").await;
    for _ in 0..3 {
        assert_eq!(reader.expect_event().await, "stream");
    }
    reader.expect_kind(RecordKind::End).await;
}
