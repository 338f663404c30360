//! What the examples share: a feed that can be resumed without a store, the transports, and the page.

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

/// The page's files: path, media type, content.
pub const PAGE: [(&str, &str, &str); 3] = [
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
];

/// Where to listen: the first argument, or port 3000.
pub fn address() -> Result<SocketAddr, AddrParseError> {
    env::args()
        .nth(1)
        .as_deref()
        .unwrap_or("127.0.0.1:3000")
        .parse()
}

/// What a page of another origin must be allowed to read, to poll. The page is one itself: some of its panels are at the
/// server's other name, because a browser opens no more than six connections to one. The feed is for everyone.
pub const EXPOSED: [HeaderName; 6] = [
    ETAG,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("stream-next-offset"),
    HeaderName::from_static("stream-cursor"),
    HeaderName::from_static("stream-up-to-date"),
    HeaderName::from_static("stream-closed"),
];

/// Every transport that the page shows: the usual ones, and those that must be asked for.
pub fn transports() -> Negotiate {
    Negotiate::new()
        .add_transport(Chunked::new(Multipart::replace()))
        .add_transport(Chunked::new(Raw::new()))
        // In the place of the usual one, so that the page can show both.
        .add_transport(WebSocket::new().deflate_threshold(None))
        .add_transport(Compressed(WebSocket::new().deflate_threshold(Some(0))))
}

/// A WebSocket under a name of its own: `?transport=websocket-compressed`.
#[derive(Clone, Debug)]
struct Compressed(WebSocket);

impl Transport for Compressed {
    fn name(&self) -> &'static str {
        "websocket-compressed"
    }

    fn media_types(&self) -> &[&'static str] {
        &[]
    }

    /// By its name only.
    fn preference(&self, _head: &Parts) -> Option<Preference> {
        None
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        self.0.respond(head, push)
    }
}

/// The time and a random number in turn, two events a second, the same for all subscribers. They may resume at any of
/// the last [`KEPT`] events.
pub fn feed() -> impl PushSource + Clone + Send + Sync + 'static {
    static FEED: LazyLock<Feed> = LazyLock::new(Feed::new);
    source_fn(|subscription: Subscription| async move { Ok(FEED.subscribe(subscription.cursor())) })
}

/// Between two events.
const TICK: Duration = Duration::from_millis(500);

/// How many events back a cursor may be: two minutes.
const KEPT: u64 = 240;

/// Event number n is a function of n, so that any event can be told again without having been kept.
struct Feed {
    /// Another process numbers other events: its ids must not match these.
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
        // Replay and live are one: to sleep until a time that has passed is not to sleep.
        let events = stream::unfold(after + 1, move |n| async move {
            sleep_until(self.started + time_of(n)).await;
            Some((self.event(n).map(Item::Event), n + 1))
        });
        stream::iter(first.map(Ok)).chain(events)
    }

    /// After which event a subscription begins, and what it must be told before.
    fn place(&self, cursor: Option<&EventId>, now: u64) -> (u64, Option<Item>) {
        let Some(cursor) = cursor else {
            // The cursor, so that a connection that drops before its first event can be resumed too.
            return (now, Some(Item::Cursor(self.id(now))));
        };
        let oldest = now.saturating_sub(KEPT);
        match self.number(cursor) {
            Some(n) if (oldest..=now).contains(&n) => (n, None),
            Some(n) if n < oldest => {
                let gap = self.gap(GapReason::Expired, cursor, oldest);
                (oldest, Some(Item::Gap(gap.missed(oldest - n))))
            }
            _ => (
                now,
                Some(Item::Gap(self.gap(GapReason::Epoch, cursor, now))),
            ),
        }
    }

    fn gap(&self, reason: GapReason, requested: &EventId, resumed: u64) -> Gap {
        Gap::new(reason)
            .requested(requested.clone())
            .resumed(self.id(resumed))
    }

    /// The number of the last event so far.
    fn now(&self) -> u64 {
        (self.started.elapsed().as_millis() / TICK.as_millis()) as u64
    }

    fn event(&self, n: u64) -> Result<Event, Error> {
        let event = if n % 2 == 0 {
            Event::text(self.clock(n)).with_type("clock")
        } else {
            Event::json_text(self.random(n))?.with_type("random")
        };
        event?.with_id(self.id(n))
    }

    /// UTC.
    fn clock(&self, n: u64) -> String {
        let time = self.started_at + time_of(n);
        let seconds = time
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
        format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
    }

    /// From 0 to 1, in four digits.
    fn random(&self, n: u64) -> String {
        format!("0.{:04}", self.seed.hash_one(n) % 10_000)
    }

    fn id(&self, n: u64) -> EventId {
        EventId::new(format!("{}-{n}", self.epoch)).expect("digits and a hyphen make an id")
    }

    fn number(&self, id: &EventId) -> Option<u64> {
        let number = id.as_str().strip_prefix(&self.epoch)?.strip_prefix('-')?;
        number.parse().ok()
    }
}

/// When event number n happens, from the start on.
fn time_of(n: u64) -> Duration {
    Duration::from_millis(n * TICK.as_millis() as u64)
}
