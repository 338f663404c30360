//! A feed that clients can resume although it stores no events, the transports, and the page.

use std::{
    env,
    hash::{BuildHasher, RandomState},
    net::{AddrParseError, SocketAddr},
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::stream::{self, Stream, StreamExt};
use http::{
    header::{ETAG, HeaderName},
    request::Parts,
};
use tokio::time::{Instant, sleep_until};
use tower_push::{
    Error, Event, EventId, Gap, GapReason, Item, Push, PushSource,
    format::{Multipart, Raw},
    source::{Subscription, source_fn},
    transport::{BoxResponseFuture, Chunked, Negotiate, Preference, Transport, WebSocket},
};

/// The files of the page, with the JavaScript client: path, media type and content.
pub const PAGE_FILES: [(&str, &str, &str); 4] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("../page/index.html"),
    ),
    (
        "/page.css",
        "text/css; charset=utf-8",
        include_str!("../page/page.css"),
    ),
    (
        "/page.js",
        "text/javascript; charset=utf-8",
        include_str!("../page/page.js"),
    ),
    (
        "/tower-push/index.js",
        "text/javascript; charset=utf-8",
        include_str!("../../clients/js/dist/index.js"),
    ),
];

/// Returns the address to listen on: the first argument, or 127.0.0.1:3000.
pub fn address() -> Result<SocketAddr, AddrParseError> {
    env::args()
        .nth(1)
        .as_deref()
        .unwrap_or("127.0.0.1:3000")
        .parse()
}

/// The response headers that pages of other origins need to poll. The page itself is such a page: some of its panels use the server's other name,
/// because a browser opens at most six connections to one host. The feed is public.
pub const EXPOSED_HEADERS: [HeaderName; 6] = [
    ETAG,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("stream-next-offset"),
    HeaderName::from_static("stream-cursor"),
    HeaderName::from_static("stream-up-to-date"),
    HeaderName::from_static("stream-closed"),
];

/// Returns all transports of the page: the default ones, and those that a client must name.
pub fn transports() -> Negotiate {
    Negotiate::new()
        .add_transport(Chunked::new(Multipart::replace()))
        .add_transport(Chunked::new(Raw::new()))
        .add_transport(CompressedWebSocket(
            WebSocket::new().deflate_threshold(Some(0)),
        ))
}

/// A WebSocket transport with another name: `?transport=websocket-compressed`.
#[derive(Clone, Debug)]
struct CompressedWebSocket(WebSocket);

impl Transport for CompressedWebSocket {
    fn name(&self) -> &'static str {
        "websocket-compressed"
    }

    fn media_types(&self) -> &[&'static str] {
        &[]
    }

    /// Clients select this transport only by its name.
    fn preference(&self, _head: &Parts) -> Option<Preference> {
        None
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        self.0.respond(head, push)
    }
}

/// Returns a feed of two events per second, which alternate between the time and a random number. All subscribers get the same events, and can
/// resume at any of the last `RESUMABLE_EVENTS`.
pub fn feed() -> impl PushSource + Clone + Send + Sync + 'static {
    static FEED: LazyLock<Feed> = LazyLock::new(Feed::new);
    source_fn(|subscription: Subscription| async move { Ok(FEED.subscribe(subscription.cursor())) })
}

/// The time between two events.
const EVENT_INTERVAL: Duration = Duration::from_millis(500);

/// The number of events after which a cursor expires: two minutes.
const RESUMABLE_EVENTS: u64 = 240;

/// Event number n is a function of n, so the feed can repeat any event without storing it.
struct Feed {
    /// Distinguishes the ids of this process from those of another one, whose events have other numbers.
    epoch: String,
    seed: RandomState,
    started: Instant,
    started_at: SystemTime,
}

impl Feed {
    fn new() -> Self {
        let seed = RandomState::new();
        Self {
            epoch: format!("{:08x}", seed.hash_one("epoch") as u32),
            seed,
            started: Instant::now(),
            started_at: SystemTime::now(),
        }
    }

    fn subscribe(
        &'static self,
        cursor: Option<&EventId>,
    ) -> impl Stream<Item = Result<Item, Error>> + use<> {
        let (after, first) = self.place(cursor, self.now());
        // Replay needs no code of its own: sleeping until a time in the past returns at once.
        let events = stream::unfold(after + 1, move |n| async move {
            sleep_until(self.started + time_of(n)).await;
            Some((self.event(n).map(Item::Event), n + 1))
        });
        stream::iter(first.map(Ok)).chain(events)
    }

    /// Returns the number of the event after which a subscription starts, and the item that comes first.
    fn place(&self, cursor: Option<&EventId>, now: u64) -> (u64, Option<Item>) {
        let Some(cursor) = cursor else {
            // With a cursor at the start, the client can resume even if the connection drops before the first event.
            return (now, Some(Item::Cursor(self.id(now))));
        };
        let oldest = now.saturating_sub(RESUMABLE_EVENTS);
        match self.number(cursor) {
            Some(n) if (oldest..=now).contains(&n) => (n, None),
            Some(n) if n < oldest => {
                let gap = self.gap(GapReason::Expired, cursor, oldest);
                (oldest, Some(Item::from(gap.missed(oldest - n))))
            }
            _ => (
                now,
                Some(Item::from(self.gap(GapReason::Epoch, cursor, now))),
            ),
        }
    }

    fn gap(&self, reason: GapReason, requested: &EventId, resumed: u64) -> Gap {
        Gap::new(reason)
            .requested(requested.clone())
            .resumed(self.id(resumed))
    }

    /// Returns the number of the last event so far.
    fn now(&self) -> u64 {
        (self.started.elapsed().as_millis() / EVENT_INTERVAL.as_millis()) as u64
    }

    fn event(&self, n: u64) -> Result<Event, Error> {
        let event = if n % 2 == 0 {
            Event::text(self.clock(n)).with_type("clock")
        } else {
            Event::json_text(self.random(n))?.with_type("random")
        };
        event?.with_id(self.id(n))
    }

    /// Returns the time of an event in UTC.
    fn clock(&self, n: u64) -> String {
        let time = self.started_at + time_of(n);
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
        format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
    }

    /// Returns a number from 0 to 1 with four digits.
    fn random(&self, n: u64) -> String {
        format!("0.{:04}", self.seed.hash_one(n) % 10_000)
    }

    fn id(&self, n: u64) -> EventId {
        EventId::new(format!("{}-{n}", self.epoch)).expect("digits and a hyphen are a valid id")
    }

    fn number(&self, id: &EventId) -> Option<u64> {
        let number = id.as_str().strip_prefix(&self.epoch)?.strip_prefix('-')?;
        number.parse().ok()
    }
}

/// Returns the time of event number n, counted from the start of the feed.
fn time_of(n: u64) -> Duration {
    Duration::from_millis(n * EVENT_INTERVAL.as_millis() as u64)
}
