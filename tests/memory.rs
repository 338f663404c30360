//! The memory of a channel, a hub and a relay stays within its limits, counted byte by byte. This file has only one test, because the
//! allocations of other tests in the process would be counted too.

use std::{
    alloc::System,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::any};
use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http_body::Body;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use testkit::{TestServer, get_request_head, read_ready_items, wait_until};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tower_push::{
    Channel, Drain, Event, Guard, Hub, Push, PushBody, PushLayer, Relay,
    layer::TransportLayer,
    server::Server,
    source::{
        PushSource, StartPosition,
        channel::LagPolicy,
        relay::{Page, PageRequest, Upstream, UpstreamError, UpstreamLimits},
    },
    transport::{Sse, Transport},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KIB: usize = 1024;

/// Returns how many bytes were allocated since `region` began and are not freed yet.
fn held_bytes(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded() {
    assert_fast_publisher_is_bounded().await;
    assert_stalled_readers_hold_one_frame_each().await;
    assert_small_events_are_bounded().await;
    assert_stalled_upstream_readers_hold_no_page().await;
    assert_topic_is_small();
    assert_idle_connection_is_small(EVENT_STREAM_REQUEST, read_channel, 750, 1050).await;
    assert_idle_connection_is_small(WEBSOCKET_REQUEST, read_channel, 900, 1200).await;
    assert_idle_connection_is_small(EVENT_STREAM_REQUEST, read_shared_topic, 1100, 1400).await;
    assert_idle_connection_is_small(WEBSOCKET_REQUEST, read_shared_topic, 1250, 1550).await;
    assert_idle_connection_is_small(EVENT_STREAM_REQUEST, read_own_topic, 1750, 1950).await;
}

/// A request for an event stream.
const EVENT_STREAM_REQUEST: &str =
    "GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n";

/// A request for a WebSocket.
const WEBSOCKET_REQUEST: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// An idle connection of a server takes at most `max_len` bytes, and at most `max_guarded_len` bytes under a guard with a drain. About 270 of the bytes
/// are tokio's registration of the socket.
async fn assert_idle_connection_is_small(
    request: &str,
    source: fn() -> MeasuredSource,
    max_len: usize,
    max_guarded_len: usize,
) {
    let len = idle_connection_len(request, source, max_len, PushLayer::new).await;
    assert!(len <= max_len, "{len} bytes for {request}");
    let guard = Guard::builder().drain(&Drain::new()).build();
    let guarded = || PushLayer::new().guard(&guard);
    let len = idle_connection_len(request, source, max_guarded_len, guarded).await;
    assert!(len <= max_guarded_len, "{len} guarded bytes for {request}");
}

/// What the measured connections read.
#[derive(Clone)]
struct MeasuredSource {
    /// Returns the source of the next connection.
    push: Arc<dyn Fn() -> Push + Send + Sync>,
    subscriber_count: Arc<dyn Fn() -> usize>,
    /// Publishes an event to all connections.
    publish: Arc<dyn Fn(&'static str)>,
}

fn read_channel() -> MeasuredSource {
    let channel = Channel::new();
    let (source, counted) = (channel.clone(), channel.clone());
    MeasuredSource {
        push: Arc::new(move || Push::new(source.clone())),
        subscriber_count: Arc::new(move || counted.subscriber_count()),
        publish: Arc::new(move |event| _ = channel.publish(event).unwrap()),
    }
}

/// Each connection reads the same topic of a hub.
fn read_shared_topic() -> MeasuredSource {
    read_hub(|hub, _| Push::new(hub.topic("news").unwrap()))
}

/// Each connection reads two topics of a hub: one of its own, and one of all connections.
fn read_own_topic() -> MeasuredSource {
    read_hub(|hub, number| {
        Push::new(
            hub.topics([format!("user/{number}"), "news".into()])
                .unwrap(),
        )
    })
}

fn read_hub(push: impl Fn(&Hub, usize) -> Push + Send + Sync + 'static) -> MeasuredSource {
    let hub = Hub::new();
    let next_number = AtomicUsize::new(0);
    let (source, counted) = (hub.clone(), hub.topic("news").unwrap());
    MeasuredSource {
        push: Arc::new(move || push(&source, next_number.fetch_add(1, Ordering::Relaxed))),
        subscriber_count: Arc::new(move || counted.subscriber_count()),
        publish: Arc::new(move |event| _ = hub.publish("news", event).unwrap()),
    }
}

/// Returns the least of up to five measurements, or the first that is at most `max_len`: on a busy machine, the runtime starts threads and
/// enlarges its tables at any time, and their bytes are counted too.
async fn idle_connection_len<T>(
    request: &str,
    source: fn() -> MeasuredSource,
    max_len: usize,
    layer: impl Fn() -> TransportLayer<T>,
) -> usize
where
    T: Transport + Clone + Send + Sync + 'static,
{
    let mut least = usize::MAX;
    for _ in 0..5 {
        least = least.min(measure_idle_connection(request, source(), layer(), max_len).await);
        if least <= max_len {
            break;
        }
    }
    least
}

/// Returns the number of bytes that a server holds for each of many connections, each of which has sent `request` and reads `source`.
async fn measure_idle_connection<T>(
    request: &str,
    source: MeasuredSource,
    layer: TransportLayer<T>,
    max_len: usize,
) -> usize
where
    T: Transport + Clone + Send + Sync + 'static,
{
    // With the others, 460 for each of two event loops: their tables have 512 entries, so few are unused.
    const CONNECTIONS: usize = 900;
    let MeasuredSource {
        push,
        subscriber_count,
        publish,
    } = source;
    let handler = any(move || std::future::ready(push()));
    let app = Router::new().route("/", handler).layer(layer);
    let server = TestServer::start_on(Server::new(), app).await;
    let mut clients = Vec::with_capacity(CONNECTIONS);
    let mut region = None;
    for number in 0..CONNECTIONS + WARM_UP_CONNECTIONS {
        if number == WARM_UP_CONNECTIONS {
            let count = || subscriber_count() == WARM_UP_CONNECTIONS;
            wait_until(count, || subscriber_count().to_string()).await;
            // Allocates the memory of the log.
            publish("before");
            // Starts the thread that takes over while this task blocks below.
            tokio::task::block_in_place(|| ());
            region = Some(Region::new(ALLOCATOR));
        }
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        // The sockets of the clients must not be registered with tokio, whose memory would be counted too.
        clients.push(client.into_std().unwrap());
    }
    let all = CONNECTIONS + WARM_UP_CONNECTIONS;
    let count = || subscriber_count() == all;
    wait_until(count, || subscriber_count().to_string()).await;
    // An event passes through all connections, so that none is still being opened.
    publish("event");
    // One block, because the runtime may start a thread for each, whose memory would be counted too.
    tokio::task::block_in_place(|| {
        for client in &mut clients {
            client.set_nonblocking(false).unwrap();
            let mut received = Vec::new();
            while !received.windows(5).any(|bytes| bytes == b"event") {
                let mut buffer = [0; 512];
                let len = client.read(&mut buffer).unwrap();
                assert_ne!(len, 0, "{received:?}");
                received.extend_from_slice(&buffer[..len]);
            }
        }
    });
    let region = region.unwrap();
    let held_len = || held_bytes(&region) / CONNECTIONS;
    // On a busy machine, the tasks that have opened the connections are freed after their clients have the event.
    for _ in 0..100 {
        if held_len() <= max_len {
            break;
        }
        tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(20)));
    }
    held_len()
}

/// The number of connections that are opened before memory is measured, so that what a server allocates once is not counted.
const WARM_UP_CONNECTIONS: usize = 20;

/// A topic of a hub and its one subscriber take at most 1 KiB.
fn assert_topic_is_small() {
    const TOPICS: usize = 100_000;
    let hub = Hub::builder().max_topics(TOPICS).build();
    let mut subscribers = Vec::with_capacity(TOPICS);
    let region = Region::new(ALLOCATOR);
    for number in 0..TOPICS {
        let topic = hub.topic(format!("user/{number}")).unwrap();
        let mut subscriber = topic.subscribe_from(StartPosition::Now).unwrap();
        assert_eq!(read_ready_items(&mut subscriber), ["cursor"]);
        subscribers.push(Box::new(subscriber));
    }
    let bytes = held_bytes(&region) / TOPICS;
    assert!(bytes <= KIB, "{bytes} bytes for each topic");
    drop(subscribers);
    let bytes = held_bytes(&region);
    assert!(bytes < 64 * KIB, "{bytes} bytes are left of removed topics");
}

/// Opens an event stream of `source`, and reads its first frame.
async fn open_stream<S: PushSource + Send + 'static>(source: S) -> PushBody {
    let mut body = Sse::new()
        .respond(&mut get_request_head("/", &[]), Push::new(source))
        .await
        .into_body();
    next_frame(&mut body).await.expect("a first frame");
    body
}

async fn open_streams<S: PushSource + Clone + Send + 'static>(
    source: &S,
    clients: usize,
) -> Vec<PushBody> {
    let opening: FuturesUnordered<_> = (0..clients).map(|_| open_stream(source.clone())).collect();
    opening.collect().await
}

/// A fast publisher has a thousand clients that stop reading after the first frame, and one that reads on.
async fn assert_fast_publisher_is_bounded() {
    const LOG_BYTES: usize = 256 * KIB;
    const STALLED_CLIENTS: usize = 1000;
    let channel = Channel::builder()
        .max_events(usize::MAX)
        .max_bytes(LOG_BYTES)
        .build();
    let mut stalled = open_streams(&channel, STALLED_CLIENTS).await;
    let mut reading = open_stream(channel.clone()).await;

    let region = Region::new(ALLOCATOR);
    let event = "x".repeat(KIB);
    for n in 0..20_000 {
        channel.publish(event.as_str()).unwrap();
        if n % 100 == 0 {
            next_frame(&mut reading).await.expect("another frame");
        }
        // The log, its encoding for the one transport in use, and a quarter of the log's limit for everything else.
        let bound = 2 * LOG_BYTES + LOG_BYTES / 2;
        let bytes = held_bytes(&region);
        assert!(bytes < bound, "{bytes} bytes held after {n} events");
    }

    // A client that reads again gets a gap and then the events that the log still has.
    let frame = next_frame(stalled.first_mut().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&frame);
    assert!(text.starts_with("event: gap\n"), "{text}");
    assert_eq!(channel.subscriber_count(), STALLED_CLIENTS + 1);
    drop((stalled, reading));
    assert_eq!(channel.subscriber_count(), 0);
    assert!(
        channel
            .subscribe_from(StartPosition::Oldest)
            .next()
            .await
            .is_some()
    );
}

/// Clients read a frame now and then, each at a different position of the log, and stop in the middle of it.
async fn assert_stalled_readers_hold_one_frame_each() {
    const LOG_BYTES: usize = 256 * KIB;
    const STALLED_CLIENTS: usize = 100;
    /// The largest number of events that a stream has taken from the log and not sent yet.
    const READ_AHEAD_EVENTS: usize = 8;
    let channel = Channel::builder()
        .max_events(usize::MAX)
        .max_bytes(LOG_BYTES)
        .build();
    let mut stalled = open_streams(&channel, STALLED_CLIENTS).await;

    let region = Region::new(ALLOCATOR);
    let event = "x".repeat(KIB);
    for n in 0..20_000 {
        channel.publish(event.as_str()).unwrap();
        if n % 70 == 69 {
            let reader = (n / 70) % STALLED_CLIENTS;
            next_frame(&mut stalled[reader])
                .await
                .expect("another frame");
        }
        // The log and the events that were taken from it, the encoding of both, and a quarter of the sum for everything else.
        let bound = 2 * (LOG_BYTES + STALLED_CLIENTS * READ_AHEAD_EVENTS * KIB) * 5 / 4;
        let bytes = held_bytes(&region);
        assert!(bytes < bound, "{bytes} bytes held after {n} events");
    }
}

/// The memory of a log of the smallest events stays within 1.3 times `max_bytes`, with and without their encodings for one transport.
async fn assert_small_events_are_bounded() {
    const LOG_BYTES: usize = 1024 * KIB;
    for readers in [0, 1] {
        let builder = Channel::builder().max_events(usize::MAX);
        let channel = builder.clone().max_bytes(LOG_BYTES).build();
        let publish = |_| _ = channel.publish("x").unwrap();
        assert_log_is_bounded("channel", &channel, publish, readers, LOG_BYTES).await;

        // The newest events of keys that the log no longer has take as much as the log.
        let key = |event: &Event| event.payload().as_text().unwrap_or("").to_owned();
        let builder = builder.max_bytes(LOG_BYTES / 2);
        let channel = builder.lag_policy(LagPolicy::conflate(key)).build();
        let publish = |number: usize| _ = channel.publish(number.to_string()).unwrap();
        assert_log_is_bounded("conflating", &channel, publish, readers, LOG_BYTES).await;

        let builder = Relay::builder().max_events(usize::MAX).max_trimmed_ids(1);
        let (mut writer, relay) = builder.max_bytes(LOG_BYTES).build();
        let publish = |number: usize| {
            let event = Event::text("x").with_event_id((number as u64).into());
            writer.push(event).unwrap();
        };
        assert_log_is_bounded("relay", &relay, publish, readers, LOG_BYTES).await;

        let builder = Hub::builder().max_events(usize::MAX);
        let topic = builder.max_bytes(LOG_BYTES).build().topic("news").unwrap();
        let publish = |_| _ = topic.publish("x").unwrap();
        assert_log_is_bounded("topic", &topic, publish, readers, LOG_BYTES).await;
    }
}

async fn assert_log_is_bounded<S: PushSource + Clone + Send + 'static>(
    name: &str,
    source: &S,
    mut publish: impl FnMut(usize),
    readers: usize,
    max_bytes: usize,
) {
    let region = Region::new(ALLOCATOR);
    let mut reading = open_streams(source, readers).await;
    for number in 0..20_000 {
        publish(number);
        for reader in reading.iter_mut().filter(|_| number % 16 == 15) {
            next_frame(reader).await.expect("another frame");
        }
        let bytes = held_bytes(&region);
        assert!(
            bytes < max_bytes / 10 * 13,
            "{name}: {bytes} bytes held after {number} events with {readers} readers"
        );
    }
}

/// An upstream of endless events of 1 KiB. The id of an event is its number.
struct EndlessUpstream;

impl Upstream for EndlessUpstream {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let after: u64 = request.after().as_str().parse()?;
        let events = (after + 1..).take(request.max_events());
        let event = |number: u64| Event::text("x".repeat(KIB)).with_event_id(number.into());
        Ok(Page::new(events.map(event).collect()))
    }
}

/// Clients return with cursors that are far apart, read a frame now and then from their pages, and stop in the middle.
async fn assert_stalled_upstream_readers_hold_no_page() {
    const CACHE_BYTES: usize = 512 * KIB;
    const STALLED_CLIENTS: usize = 200;
    let limits = UpstreamLimits::new()
        .max_page_events(100)
        .max_cache_bytes(CACHE_BYTES);
    let (mut feed, relay) = Relay::builder()
        .upstream(EndlessUpstream)
        .upstream_limits(limits.max_scan(usize::MAX))
        .build();
    let newest = Event::text("x").with_event_id(u64::MAX.into());
    feed.push(newest).unwrap();

    let region = Region::new(ALLOCATOR);
    let mut stalled = Vec::new();
    for client in 0..STALLED_CLIENTS {
        let cursor = (client * 10_000).to_string();
        let mut head = get_request_head("/", &[("last-event-id", &cursor)]);
        let response = Sse::new()
            .respond(&mut head, Push::new(relay.clone()))
            .await;
        let mut body = response.into_body();
        next_frame(&mut body).await.expect("a first frame");
        stalled.push(body);
    }
    for round in 0..3 {
        for body in &mut stalled {
            next_frame(body).await.expect("another frame");
        }
        // The pages, each event with its encoding; the page that is read while the cache is full; and 4 KiB for each client.
        let bound = 2 * (CACHE_BYTES + 100 * KIB) * 5 / 4 + STALLED_CLIENTS * 4 * KIB;
        let bytes = held_bytes(&region);
        assert!(
            bytes < bound,
            "{bytes} bytes held in round {round}, more than {bound}"
        );
    }
}

async fn next_frame<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Option<Bytes> {
    use http_body_util::BodyExt;
    let frame = body.frame().await?;
    frame.ok()?.into_data().ok()
}
