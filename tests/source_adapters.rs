//! The adapters of sources: early responses, first items, values that live as long as a stream, and answers to one client.

use std::{
    future::{pending, poll_fn, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use testkit::{
    HttpVersion, LiveCounter, RecordClient, TestServer, empty_request, get_request_head, poll_next,
    websocket,
};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};
use tokio_websockets::Message;
use tower::{Layer, ServiceExt};
use tower_http::timeout::TimeoutLayer;
use tower_push::{
    Channel, Event, Gap, Guard, Item, Push, PushBody, PushSource,
    event::{GapReason, Payload},
    guard::CloseReason,
    source::{
        BroadcastSource, ClientMessageSender, Rejection, StartPosition, Subscription, source_fn,
    },
    transport::{LongPoll, Sse, Transport},
};

const SECOND: Duration = Duration::from_secs(1);

/// A source that accepts its subscription after 40 seconds, and then yields one event.
fn slow_source() -> impl PushSource<Stream: Unpin> + Clone + Send + 'static {
    source_fn(async |_| {
        sleep(40 * SECOND).await;
        Ok(tokio_stream::iter(["answer"]))
    })
}

fn get(uri: &str) -> Request<Empty<Bytes>> {
    empty_request("GET", uri, &[])
}

/// Returns the URI of the poll that follows `response`.
fn next_poll(response: &Response<PushBody>) -> String {
    let cursor = response.headers()["last-event-id"].to_str().unwrap();
    format!("/?last_event_id={cursor}")
}

#[tokio::test(start_paused = true)]
async fn early_response_passes_timeout() {
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SECOND);
    let late = timeout.layer(tower_push::service(slow_source()));
    let response = late.oneshot(get("/?transport=sse")).await.unwrap();
    assert_eq!(response.status(), 408);

    let early = timeout.layer(tower_push::service(slow_source().respond_early()));
    let response = early.oneshot(get("/?transport=sse")).await.unwrap();
    let mut client = RecordClient::new(response);
    client.expect(&["answer"]).await;
    client.expect_end().await;
}

#[tokio::test(start_paused = true)]
async fn early_response_has_heartbeats() {
    let mut head = testkit::get_request_head("/", &[]);
    let push = Push::new(slow_source().respond_early());
    let response = Sse::new().respond(&mut head, push).await;
    let start = Instant::now();
    let (frames, result) = testkit::body_frames(response.into_body()).await;
    result.unwrap();
    assert!(start.elapsed() >= 40 * SECOND);
    // The opening, heartbeats after 15 and 30 seconds, and the event.
    assert!(frames.len() >= 4, "{frames:?}");
}

/// Opens the stream of a client whose cursor is 7, and whose subscription is refused late.
async fn refused_client(rejection: Rejection) -> RecordClient {
    let source = source_fn(async move |_| Err::<tokio_stream::Empty<Event>, _>(rejection));
    RecordClient::open(Push::new(source.respond_early()), Some("7")).await
}

#[tokio::test]
async fn early_response_reports_finished_source() {
    let mut client = refused_client(Rejection::finished()).await;
    let end = client.next().await.unwrap();
    assert!(end.starts_with(r#"end {"finished":true"#), "{end}");
    assert_eq!(client.cursor(), Some("~finished"));
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn early_refusal_keeps_cursor() {
    let minutes = 150_000..=450_000;
    let seconds = 2500..=7500;
    for (rejection, times) in [
        (Rejection::new(StatusCode::FORBIDDEN), minutes.clone()),
        (Rejection::new(StatusCode::NOT_FOUND), minutes),
        (Rejection::new(StatusCode::CONFLICT), seconds.clone()),
        (Rejection::new(StatusCode::INTERNAL_SERVER_ERROR), seconds),
        (
            Rejection::new(StatusCode::SERVICE_UNAVAILABLE).retry_after(7 * SECOND),
            7000..=7000,
        ),
        (
            Rejection::new(StatusCode::FORBIDDEN).retry_after(9 * SECOND),
            9000..=9000,
        ),
    ] {
        let mut client = refused_client(rejection).await;
        let end = client.next().await.unwrap();
        assert!(end.contains(r#""finished":false"#), "{end}");
        let retry = end.split(r#""retry":"#).nth(1).unwrap();
        let retry: u64 = retry.trim_end_matches('}').parse().unwrap();
        assert!(times.contains(&retry), "{end}");
        assert_eq!(client.cursor(), Some("7"));
        assert_eq!(client.next().await, None);
    }
}

#[tokio::test]
async fn early_refusal_of_long_poll_has_status() {
    let refusing = source_fn(async |_| {
        Err::<tokio_stream::Empty<Event>, _>(Rejection::new(StatusCode::FORBIDDEN))
    });
    let service = tower_push::service(refusing.respond_early()).transport(LongPoll::new());
    for uri in [
        "/",
        "/?last_event_id=7",
        "/?offset=-1",
        "/?offset=-1&live=sse",
    ] {
        let response = service.clone().oneshot(get(uri)).await.unwrap();
        assert_eq!(response.status(), 403, "{uri}");
        for name in ["etag", "last-event-id", "stream-next-offset"] {
            assert!(!response.headers().contains_key(name), "{uri}: {name}");
        }
    }
}

#[tokio::test]
async fn early_response_selects_no_subprotocol() {
    let source = source_fn(async |subscription: Subscription| {
        let is_selected = subscription.select_subprotocol("bearer");
        let agreed = subscription.subprotocol().map(str::to_owned);
        Ok(tokio_stream::iter([format!("{is_selected} {agreed:?}")]))
    });
    let offer = [("sec-websocket-protocol", "bearer, secret")];
    let head = testkit::get_request_head("/", &offer);
    for (is_early, expected) in [(false, r#"true Some("bearer")"#), (true, "false None")] {
        let subscription = Subscription::new(&head, "websocket");
        let push = if is_early {
            Push::new(source.respond_early())
        } else {
            Push::new(source)
        };
        let mut items = push.subscribe(subscription).await.unwrap();
        let item = items.next().await.unwrap().unwrap();
        let payload = item.event().unwrap().payload();
        assert_eq!(payload.as_text(), Some(expected));
    }
}

#[tokio::test]
async fn early_response_closes_websocket_with_status() {
    let refusing = source_fn(async |_| {
        let rejection = Rejection::new(StatusCode::FORBIDDEN).message("not for you");
        Err::<tokio_stream::Empty<Event>, _>(rejection)
    });
    let server = TestServer::start(tower_push::service(refusing.respond_early())).await;
    for version in HttpVersion::ALL {
        let mut client = websocket::connect(&server, version, "/", &[]).await;
        let close = client.next_frame().await.unwrap();
        let close = close.close_code_and_reason();
        assert_eq!(close, Some((4403, "not for you".to_owned())));
    }
}

#[tokio::test(start_paused = true)]
async fn early_response_obeys_late_expiry() {
    let source = source_fn(async |subscription: Subscription| {
        sleep(SECOND).await;
        subscription.expire_within(10 * SECOND);
        Ok(tokio_stream::pending::<Event>())
    });
    let guard = Guard::new();
    let mut head = testkit::get_request_head("/", &[]);
    let push = Push::new(source.respond_early());
    let response = guard.wrap(Sse::new()).respond(&mut head, push).await;
    assert_eq!(guard.counts().open(), 1);
    let start = Instant::now();
    RecordClient::new(response).expect_end().await;
    assert_eq!(start.elapsed(), 11 * SECOND);
    assert_eq!(guard.counts().closed(CloseReason::CredentialExpired), 1);
}

#[tokio::test]
async fn early_response_is_cancelled_when_client_leaves() {
    let counter = LiveCounter::default();
    let source = source_fn({
        let counter = counter.clone();
        async move |_| {
            let held = counter.wrap(tokio_stream::pending::<Event>());
            pending::<()>().await;
            Ok(held)
        }
    });
    let mut client = RecordClient::open(Push::new(source.respond_early()), None).await;
    let reading = client.next();
    assert!(
        tokio::time::timeout(Duration::from_millis(20), reading)
            .await
            .is_err()
    );
    assert_eq!(counter.get(), 1);
    drop(client);
    assert_eq!(counter.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn long_poll_waits_for_slow_source() {
    let calls = Arc::new(AtomicUsize::new(0));
    let source = source_fn({
        let calls = calls.clone();
        move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            async {
                sleep(40 * SECOND).await;
                Ok(tokio_stream::iter(["answer"]))
            }
        }
    });
    let service = tower_push::service(source.respond_early()).transport(LongPoll::new());
    let response = service.oneshot(get("/")).await.unwrap();
    RecordClient::new(response).expect(&["answer"]).await;
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn early_response_keeps_client_messages() {
    let (accept, accepted) = oneshot::channel::<()>();
    let accepted = Arc::new(tokio::sync::Mutex::new(Some(accepted)));
    let echo = source_fn(async move |subscription: Subscription| {
        let accepted = accepted.lock().await.take().unwrap();
        accepted.await.unwrap();
        let messages = subscription.client_messages();
        messages.ok_or(Rejection::new(StatusCode::UPGRADE_REQUIRED))
    });
    let server = TestServer::start(tower_push::service(echo.respond_early())).await;
    let client = websocket::connect(&server, HttpVersion::Http1, "/", &[]).await;
    let mut client = client.into_compliant_client();
    client.send(Message::text("early")).await.unwrap();
    accept.send(()).unwrap();
    let message = client.next().await.unwrap().unwrap();
    assert_eq!(message.as_text(), Some("early"));
}

#[tokio::test]
async fn first_item_precedes_stream() {
    let source = tokio_stream::iter(["1", "2"]).preceded_by(async || "hello");
    let mut client = RecordClient::open(Push::new(source), None).await;
    client.expect(&["hello", "1", "2"]).await;
    client.expect_end().await;
}

#[tokio::test]
async fn first_item_is_not_repeated_on_resume() {
    let channel = Channel::new();
    let push = || Push::new(channel.clone().preceded_by(async || "hello"));
    let mut client = RecordClient::open(push(), None).await;
    client.expect(&["hello"]).await;
    client.wait_for_cursor().await;
    let cursor = client.cursor().unwrap().to_owned();
    channel.publish("1").unwrap();
    let mut resumed = RecordClient::open(push(), Some(&cursor)).await;
    resumed.expect(&["1"]).await;
    // The client cannot resume.
    let mut lost = RecordClient::open(push(), Some("another-channel")).await;
    lost.expect(&["gap epoch null", "hello", "1"]).await;
    let mut unreadable = RecordClient::open(push(), Some("not an id")).await;
    unreadable.expect(&["gap epoch null", "hello"]).await;
}

#[tokio::test]
async fn first_item_does_not_follow_later_gap() {
    let lag = Item::from(Gap::new(GapReason::Lagged));
    let items = [Item::Event(Event::text("1")), lag];
    let source = tokio_stream::iter(items).preceded_by(async || "snapshot");
    let mut client = RecordClient::open(Push::new(source), None).await;
    client.expect(&["snapshot", "1", "gap lagged null"]).await;
    client.expect_end().await;
}

#[tokio::test]
async fn snapshot_misses_no_event() {
    let channel = Channel::new();
    let snapshot = {
        let channel = channel.clone();
        async move || {
            // A change while the snapshot is read.
            channel.publish("change").map(|_| "snapshot")
        }
    };
    let push = Push::new(channel.preceded_by(snapshot));
    let mut client = RecordClient::open(push, None).await;
    client.expect(&["snapshot", "change"]).await;
}

#[tokio::test]
async fn failing_first_item_cuts_stream() {
    let first = async || Err::<&str, _>(std::io::Error::other("no database"));
    let push = Push::new(tokio_stream::iter(["1"]).preceded_by(first));
    let mut client = RecordClient::open(push, None).await;
    client.expect(&["error"]).await;
}

#[tokio::test]
async fn first_item_of_broadcast_follows_gap() {
    let (sender, _) = tokio::sync::broadcast::channel(4);
    let push = || {
        let source = BroadcastSource::new(sender.subscribe());
        Push::new(source.preceded_by(async || "snapshot"))
    };
    let mut client = RecordClient::open(push(), None).await;
    sender.send("1").unwrap();
    client.expect(&["snapshot", "1"]).await;
    let cursor = client.cursor().unwrap().to_owned();
    let mut client = RecordClient::open(push(), Some(&cursor)).await;
    client.expect(&["gap epoch null", "snapshot"]).await;
}

#[tokio::test(start_paused = true)]
async fn first_item_is_polled_once() {
    let channel = Channel::new();
    let source = channel.clone().preceded_by(async || "hello");
    let service = tower_push::service(source).transport(LongPoll::new());
    let mut records = Vec::new();
    let mut uri = "/".to_owned();
    for event in ["1", "2"] {
        let response = service.clone().oneshot(get(&uri)).await.unwrap();
        uri = next_poll(&response);
        records.extend(RecordClient::new(response).read_to_end().await);
        channel.publish(event).unwrap();
    }
    assert_eq!(records, ["hello", "1"]);
}

/// Counts the clones that exist.
#[derive(Clone)]
struct Token(#[allow(dead_code)] Arc<()>);

#[tokio::test]
async fn value_is_dropped_with_stream() {
    let alive = Arc::new(());
    let hold = || Token(alive.clone());
    let channel = Channel::new();
    let client = RecordClient::open(Push::new(channel.clone().holding(hold())), None).await;
    assert_eq!(Arc::strong_count(&alive), 2);
    drop(client);
    assert_eq!(Arc::strong_count(&alive), 1);

    let refusing = source_fn(async |_| {
        Err::<tokio_stream::Empty<Event>, _>(Rejection::new(StatusCode::FORBIDDEN))
    });
    let mut head = testkit::get_request_head("/", &[]);
    let response = Sse::new().respond(&mut head, Push::new(refusing.holding(hold())));
    assert_eq!(response.await.status(), 403);
    assert_eq!(Arc::strong_count(&alive), 1);

    // A stream that has ended keeps the value no longer than its response.
    let ended = tokio_stream::iter(["1"]).holding(hold());
    let mut client = RecordClient::open(Push::new(ended), None).await;
    client.expect(&["1"]).await;
    client.expect_end().await;
    assert_eq!(Arc::strong_count(&alive), 1);
}

async fn expect_texts<S>(client: &mut S, expected: &[&str])
where
    S: Stream<Item = Result<Message, tokio_websockets::Error>> + Unpin,
{
    for text in expected {
        let message = client.next().await.unwrap().unwrap();
        assert_eq!(message.as_text(), Some(*text));
    }
}

/// Each client gets the answers to its own messages, in their order, and the events do not wait for them.
#[tokio::test]
async fn answers_reach_their_client_only() {
    let room = Channel::new();
    let (release, released) = watch::channel(false);
    let source = room.clone().answering(move |message: Payload| {
        let mut released = released.clone();
        async move {
            if message.as_text() == Some("wait") {
                released.wait_for(|is_released| *is_released).await.ok()?;
            }
            let is_answered = message.as_text() != Some("quiet");
            is_answered.then(|| Event::from(message).with_type("answer"))
        }
    });
    let server = TestServer::start(tower_push::service(source)).await;
    let connect = async || {
        let client = websocket::connect(&server, HttpVersion::Http1, "/", &[]).await;
        client.into_compliant_client()
    };
    let (mut ada, mut ben) = (connect().await, connect().await);
    while room.subscriber_count() < 2 {
        sleep(Duration::from_millis(1)).await;
    }
    for message in ["1", "quiet", "wait", "2"] {
        ada.send(Message::text(message)).await.unwrap();
    }
    expect_texts(&mut ada, &["1"]).await;
    room.publish("an event").unwrap();
    expect_texts(&mut ada, &["an event"]).await;
    release.send(true).unwrap();
    expect_texts(&mut ada, &["wait", "2"]).await;
    room.publish("the last event").unwrap();
    expect_texts(&mut ada, &["the last event"]).await;
    expect_texts(&mut ben, &["an event", "the last event"]).await;
}

#[tokio::test]
async fn answers_alternate_with_events() {
    let sender = ClientMessageSender::new();
    let head = get_request_head("/", &[]);
    let subscription = Subscription::new(&head, "test").with_client_messages(&sender);
    let source = tokio_stream::iter(["event"; 4]).answering(async |message| Some(message));
    let mut stream = source.subscribe(subscription).await.unwrap();
    poll_fn(|cx| {
        let mut batch = std::task::ready!(sender.poll_batch(cx)).unwrap();
        (0..8).for_each(|_| batch.push(Payload::Text("answer".to_owned())));
        sender.send(batch, cx);
        Poll::Ready(())
    })
    .await;
    let mut texts = Vec::new();
    while let Some(item) = stream.next().await {
        let event = item.unwrap();
        texts.push(
            event
                .event()
                .unwrap()
                .payload()
                .as_text()
                .unwrap()
                .to_owned(),
        );
    }
    assert_eq!(texts[..8], ["answer", "event"].repeat(4));
}

#[tokio::test]
async fn unanswered_messages_leave_other_tasks_their_turn() {
    let sender = ClientMessageSender::new();
    let head = get_request_head("/", &[]);
    let subscription = Subscription::new(&head, "test").with_client_messages(&sender);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let source = tokio_stream::pending::<&str>().answering(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        ready(None::<Event>)
    });
    let mut stream = source.subscribe(subscription).await.unwrap();
    poll_fn(|cx| {
        let mut batch = std::task::ready!(sender.poll_batch(cx)).unwrap();
        (0..60).for_each(|_| batch.push(Payload::Text("message".to_owned())));
        sender.send(batch, cx);
        Poll::Ready(())
    })
    .await;
    assert!(poll_next(&mut stream).is_pending());
    assert!((1..60).contains(&count.load(Ordering::Relaxed)));
    while count.load(Ordering::Relaxed) < 60 {
        assert!(poll_next(&mut stream).is_pending());
    }
}

#[tokio::test]
async fn adapters_keep_resumability() {
    let channel = Channel::new();
    let id = channel.publish("1").unwrap();
    channel.publish("2").unwrap();
    let source = channel.with_start(StartPosition::Oldest);
    let source = source
        .answering(async |_| None::<Event>)
        .holding(())
        .preceded_by(async || "hello")
        .respond_early();
    assert!(source.is_resumable());
    let mut client = RecordClient::open(Push::new(source), Some(id.as_str())).await;
    client.expect(&["2"]).await;
    assert!(
        !tokio_stream::iter(["1"])
            .holding(())
            .respond_early()
            .is_resumable()
    );
}
