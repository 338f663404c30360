//! One cursor for all transports: a client that switches the transport at random reads each event of a numbered feed exactly once, in
//! order.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use testkit::{
    HttpConnection, HttpVersion, StreamingResponse, TestServer,
    records::{ParsedRecord, RecordReader},
    websocket::WebSocketConnection,
};
use tower_push::{
    Channel, Event, EventId, Hub, PushSource, Relay,
    source::{
        StartPosition,
        hub::{ClientTopicsSource, Topics},
        relay::{Page, PageRequest, Upstream, UpstreamError, UpstreamLimits},
    },
};

/// The number of requests of each client: 3000, or that of the environment variable `SWITCHING_REQUESTS`.
fn request_count() -> u64 {
    let requests = std::env::var("SWITCHING_REQUESTS").ok();
    requests.map_or(3000, |requests| {
        requests.parse().expect("SWITCHING_REQUESTS is a number")
    })
}

/// The queries of the requests, and where a client puts its cursor in each.
const REQUEST_KINDS: [(&str, CursorPlacement); 9] = [
    ("transport=sse", CursorPlacement::Query("last_event_id")),
    ("transport=ndjson", CursorPlacement::Query("last_event_id")),
    (
        "transport=json-seq",
        CursorPlacement::Query("last_event_id"),
    ),
    (
        "transport=multipart",
        CursorPlacement::Query("last_event_id"),
    ),
    (
        "transport=long-poll&timeout=0",
        CursorPlacement::Query("last_event_id"),
    ),
    ("transport=long-poll&timeout=0", CursorPlacement::Validator),
    ("live=long-poll&timeout=0", CursorPlacement::Query("offset")),
    ("live=sse", CursorPlacement::Query("offset")),
    (WEBSOCKET, CursorPlacement::Query("last_event_id")),
];

const WEBSOCKET: &str = "transport=websocket";

/// Where a request carries the cursor.
#[derive(Clone, Copy)]
enum CursorPlacement {
    /// The query parameter of this name.
    Query(&'static str),
    /// The header `If-None-Match`, which a browser's cache sends.
    Validator,
}

/// An open response or WebSocket, from which the client reads records.
enum OpenResponse {
    Response(StreamingResponse),
    /// A WebSocket whose messages have the format of NDJSON records.
    WebSocket(WebSocketConnection),
}

impl OpenResponse {
    async fn open(client: &mut HttpConnection, path: &str) -> Self {
        let protocol = ("sec-websocket-protocol", "json.tower-push");
        let result = client.open_websocket(path, &[protocol]).await;
        Self::WebSocket(result.unwrap_or_else(|refusal| panic!("{}", refusal.head.status)))
    }

    fn header(&self, name: &str) -> Option<&str> {
        match self {
            Self::Response(response) => response.header(name),
            Self::WebSocket(_) => (name == "content-type").then_some("application/x-ndjson"),
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        match self {
            Self::Response(response) => response.next_chunk().await,
            Self::WebSocket(socket) => {
                let mut line = socket.next_frame().await?.payload;
                line.push(b'\n');
                Some(Ok(line.into()))
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channel_sends_each_event_once_in_order() {
    let channel = Channel::builder()
        .max_events(100_000)
        .max_bytes(64 << 20)
        .start(StartPosition::Oldest)
        .build();
    let publisher = channel.clone();
    let publish = move |number: u64| {
        publisher.publish(number.to_string()).unwrap();
    };
    switch_transports(channel.clone(), publish).await;
    let counts = channel.counts();
    assert_eq!((counts.missed_on_resume, counts.lagged), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hub_sends_each_event_once_in_order() {
    let hub = Hub::builder()
        .max_events(100_000)
        .max_bytes(64 << 20)
        .start(StartPosition::Oldest)
        .build();
    let source = hub.topics(["a", "b", "c"]).unwrap();
    let publisher = hub.clone();
    let publish = move |number: u64| {
        let topic = ["a", "b", "c"][number as usize % 3];
        publisher.publish("elsewhere", "x").unwrap();
        match number % 5 {
            0 => publisher.publish(["a", "b", "c"], number.to_string()),
            _ => publisher.publish(topic, number.to_string()),
        }
        .unwrap();
    };
    switch_transports(source, publish).await;
    let counts = hub.counts();
    assert_eq!((counts.missed_on_resume, counts.lagged), (0, 0));
}

/// An upstream that has all numbers up to the last one that was published. The id of a number is the number.
struct Numbers(Arc<AtomicU64>);

impl Numbers {
    fn event(number: u64) -> Event {
        Event::text(number.to_string()).with_event_id(number.into())
    }
}

impl Upstream for Numbers {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let after: u64 = request.after().as_str().parse()?;
        let numbers = after + 1..=self.0.load(Ordering::SeqCst);
        let numbers = numbers.take(request.max_events());
        Ok(Page::new(numbers.map(Self::event).collect()))
    }
}

/// After each burst of events, the client's cursor is far behind the relay's log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_sends_each_event_once_in_order() {
    let last_number = Arc::new(AtomicU64::new(0));
    let (mut feed, relay) = Relay::builder()
        .max_events(100)
        .start(StartPosition::Oldest)
        .start_after(0.into())
        .upstream(Numbers(last_number.clone()))
        .upstream_limits(UpstreamLimits::new().max_page_events(40))
        .build();
    let publish = move |number| {
        last_number.store(number, Ordering::SeqCst);
        feed.push(Numbers::event(number)).unwrap();
    };
    switch_transports(relay.clone(), publish).await;
    let counts = relay.counts();
    assert!(counts.upstream_resumes > request_count() / 50, "{counts:?}");
    let losses = (counts.missed_on_resume, counts.lost_cursors);
    assert_eq!((losses, counts.unavailable), ((0, 0), 0));
}

/// Lets one client read numbers from 1 on, over a transport that changes at random, while `publish` adds them. The client must get each
/// number once, in order.
async fn switch_transports<S>(source: S, publish: impl FnMut(u64) + Send + 'static)
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    switch_with_check(source, publish, AllNumbers::default()).await;
}

/// Checks what a client gets.
trait ReceivedCheck {
    /// Begins a request with this cursor. Returns the end of the request's query, which begins with `&` if it is not empty.
    fn begin_request(&mut self, random: &mut dyn FnMut(u64) -> u64, cursor: Option<&str>)
    -> String;

    /// Returns how many numbers the publisher must be ahead of the client, so that at least one of them is for the client.
    fn min_ahead(&self) -> u64 {
        1
    }

    /// Returns the cursor of the first request.
    fn first_cursor(&self) -> Option<String> {
        None
    }

    /// Returns whether the client makes requests of this kind.
    fn allows(&self, _query: &str) -> bool {
        true
    }

    /// Checks a record of the response.
    fn check_record(&mut self, record: &ParsedRecord);

    /// Returns the number up to which the client has all numbers.
    fn last_number(&self) -> u64;
}

/// The client gets each number once, in order.
#[derive(Default)]
struct AllNumbers {
    last: u64,
}

impl ReceivedCheck for AllNumbers {
    fn begin_request(&mut self, _: &mut dyn FnMut(u64) -> u64, _: Option<&str>) -> String {
        String::new()
    }

    fn check_record(&mut self, record: &ParsedRecord) {
        assert!(record.gap.is_none());
        self.last += 1;
        assert_eq!(record.data, Some(self.last.to_string()));
    }

    fn last_number(&self) -> u64 {
        self.last
    }
}

/// The client reads other topics in each request. It gets each number of its topics once, in order, or is told of a gap in the topic.
struct ChangingTopics {
    /// For each id: the last number that was published when the hub made the id.
    ids: Arc<Mutex<HashMap<String, u64>>>,
    first_cursor: EventId,
    may_have_gaps: bool,
    /// The last number that the client has got, or that of its cursor.
    last: u64,
    /// For each topic of the request: the number up to which the client has got every number of the topic, or a gap in its place.
    complete_up_to: HashMap<&'static str, u64>,
    received: HashSet<u64>,
    /// The topics of the gaps that the client has got since the last event. Such a gap may stand for one number more than its cursor says: see
    /// `extend_gaps`.
    gap_topics: Vec<&'static str>,
    gap_count: u64,
}

impl ChangingTopics {
    /// Returns the check, a hub's source, and the function that publishes a number to the hub.
    fn new(
        max_events: usize,
        may_have_gaps: bool,
    ) -> (Self, ClientTopicsSource, impl FnMut(u64) + Send) {
        let hub = Hub::builder()
            .max_events(max_events)
            .max_bytes(64 << 20)
            .build();
        let ids = Arc::<Mutex<HashMap<String, u64>>>::default();
        let check = Self {
            ids: ids.clone(),
            first_cursor: hub.publish("elsewhere", "x").unwrap(),
            may_have_gaps,
            last: 0,
            complete_up_to: HashMap::new(),
            received: HashSet::new(),
            gap_topics: Vec::new(),
            gap_count: 0,
        };
        let source = hub
            .subscribe(Topics::from_query("topic"))
            .without_authorization();
        let publish = move |number: u64| {
            let mut ids = ids.lock().unwrap();
            let id = hub.publish("elsewhere", "x").unwrap();
            ids.insert(id.to_string(), number - 1);
            let id = hub.publish(topics_of(number), number.to_string()).unwrap();
            ids.insert(id.to_string(), number);
        };
        (check, source, publish)
    }

    fn number_of(&self, id: &str) -> u64 {
        self.ids.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    /// Returns the first number of a topic, up to `end`, for which the client has got neither the number nor a gap.
    fn missing_number(&self, topic: &str, end: u64) -> Option<u64> {
        let is_missing =
            |number: &u64| topics_of(*number).contains(&topic) && !self.received.contains(number);
        (self.complete_up_to[topic] + 1..=end).find(is_missing)
    }

    /// Extends the gaps since the last event by `number`, if they end directly before it. The cursor of a gap is before the last missing number if
    /// this number is in several topics, and the client gets it, or a gap for it, from another topic next.
    fn extend_gaps(&mut self, number: u64) {
        for topic in &self.gap_topics {
            if self.complete_up_to[topic] + 1 == number {
                self.complete_up_to.insert(topic, number);
            }
        }
    }
}

/// Returns the topics to which a number is published.
fn topics_of(number: u64) -> Vec<&'static str> {
    match number % 5 {
        0 => TOPICS.to_vec(),
        _ => vec![TOPICS[number as usize % 3]],
    }
}

const TOPICS: [&str; 3] = ["a", "b", "c"];

impl ReceivedCheck for ChangingTopics {
    fn begin_request(
        &mut self,
        random: &mut dyn FnMut(u64) -> u64,
        cursor: Option<&str>,
    ) -> String {
        let cursor_number = self.number_of(cursor.expect("there is a first cursor"));
        assert!(cursor_number >= self.last, "the cursor went back");
        self.last = cursor_number;
        let chosen = 1 + random(7);
        let chosen = (0..3).filter(|index| chosen & (1 << index) != 0);
        let chosen: Vec<_> = chosen.map(|index| TOPICS[index]).collect();
        let complete_up_to = chosen.iter().map(|topic| {
            // A gap may follow an event of another topic. The client that returns before the gap gets the gap now.
            let is_owed = |topic: &&str| {
                self.complete_up_to.contains_key(*topic)
                    && self.missing_number(topic, cursor_number).is_some()
            };
            assert!(
                self.may_have_gaps || !is_owed(topic),
                "the cursor has passed an event"
            );
            match is_owed(topic) {
                true => (*topic, self.complete_up_to[topic]),
                false => (*topic, cursor_number),
            }
        });
        self.complete_up_to = complete_up_to.collect();
        self.gap_topics.clear();
        chosen
            .iter()
            .map(|topic| format!("&topic={topic}"))
            .collect()
    }

    fn min_ahead(&self) -> u64 {
        16
    }

    fn first_cursor(&self) -> Option<String> {
        Some(self.first_cursor.to_string())
    }

    /// A Durable Stream has no gaps.
    fn allows(&self, query: &str) -> bool {
        !self.may_have_gaps || !query.starts_with("live=")
    }

    fn check_record(&mut self, record: &ParsedRecord) {
        if let Some(gap) = &record.gap {
            let topic = gap["topic"].as_str().expect("the gap names its topic");
            let topic = TOPICS.into_iter().find(|name| *name == topic).unwrap();
            let end = self.number_of(gap["resumed"].as_str().unwrap());
            assert!(end >= self.complete_up_to[topic], "{gap}");
            self.extend_gaps(end);
            self.gap_topics.push(topic);
            self.complete_up_to.insert(topic, end);
            self.gap_count += 1;
            return;
        }
        let number = record.data.as_ref().unwrap().parse().unwrap();
        assert!(
            number > self.last && self.received.insert(number),
            "{number} comes twice"
        );
        self.last = number;
        self.extend_gaps(number);
        self.gap_topics.clear();
        for topic in topics_of(number) {
            if self.complete_up_to.contains_key(topic) && topics_of(number).len() == 1 {
                assert_eq!(self.missing_number(topic, number), None, "before {number}");
                self.complete_up_to.insert(topic, number);
            }
        }
    }

    fn last_number(&self) -> u64 {
        self.last
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_topics_get_each_event_once_in_order() {
    let (check, source, publish) = ChangingTopics::new(100_000, false);
    let check = switch_with_check(source, publish, check).await;
    assert_eq!(check.gap_count, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_topics_are_told_what_is_missing() {
    let (check, source, publish) = ChangingTopics::new(60, true);
    let check = switch_with_check(source, publish, check).await;
    assert!(
        check.gap_count > request_count() / 50,
        "{}",
        check.gap_count
    );
}

/// Lets one client read numbers over transports that change at random, while `publish` adds them.
async fn switch_with_check<S, C>(
    source: S,
    mut publish: impl FnMut(u64) + Send + 'static,
    mut check: C,
) -> C
where
    C: ReceivedCheck,
    S: PushSource + Clone + Send + Sync + 'static,
{
    let server = TestServer::start(tower_push::service(source)).await;
    let (last_read, done) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    // The number up to which the publisher publishes while no client reads.
    let burst_end = Arc::new(AtomicU64::new(0));
    let published = Arc::new(AtomicU64::new(0));
    let min_ahead = check.min_ahead();
    let publisher = thread::spawn({
        let (last_read, done) = (last_read.clone(), done.clone());
        let (burst_end, published) = (burst_end.clone(), published.clone());
        move || {
            let mut next = 1_u64;
            while !done.load(Ordering::Relaxed) {
                // The publisher is up to 50 events ahead of the client, and sometimes not ahead at all.
                let end = last_read.load(Ordering::Relaxed) + min_ahead + next % 50;
                if next <= end.max(burst_end.load(Ordering::Relaxed)) {
                    publish(next);
                    published.store(next, Ordering::Relaxed);
                    next += 1;
                } else {
                    thread::sleep(Duration::from_micros(50));
                }
            }
        }
    });

    let mut clients = [
        HttpConnection::connect(&server, HttpVersion::Http2).await,
        HttpConnection::connect(&server, HttpVersion::Http1).await,
    ];
    let (mut cursor, mut etag) = (check.first_cursor(), None::<String>);
    // A linear congruential generator, whose numbers are the same in every run.
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    for request in 0..request_count() {
        if request % 50 == 49 {
            let end = check.last_number() + 301;
            burst_end.store(end, Ordering::Relaxed);
            while published.load(Ordering::Relaxed) < end {
                tokio::time::sleep(Duration::from_micros(50)).await;
            }
        }
        let mut random_kind = || REQUEST_KINDS[random(REQUEST_KINDS.len() as u64) as usize];
        let (query, placement) = loop {
            let (query, placement) = random_kind();
            if check.allows(query) {
                break (query, placement);
            }
        };
        // HTTP/1.1 needs a new connection, because dropping an unfinished response closes the old one.
        let version = random(8).min(1) as usize;
        if version == 1 {
            clients[1] = HttpConnection::connect(&server, HttpVersion::Http1).await;
        }
        let end = check.begin_request(&mut random, cursor.as_deref());
        let (path, validator) = match (&cursor, placement) {
            (Some(id), CursorPlacement::Query(parameter)) => {
                (format!("/?{query}&{parameter}={id}{end}"), None)
            }
            (Some(id), CursorPlacement::Validator) => {
                // The last response's ETag if it had one, or else the ETag that it would have had.
                let held = etag.take().unwrap_or(format!("\"{id}+json\""));
                (format!("/?{query}{end}"), Some(held))
            }
            (None, CursorPlacement::Query("offset")) => (format!("/?{query}&offset=-1{end}"), None),
            (None, _) => (format!("/?{query}{end}"), None),
        };
        let validator = validator.as_deref().map(|etag| ("if-none-match", etag));
        // The ETag of any format is accepted for any other format.
        let accept = ["application/json", "application/x-ndjson"][random(2) as usize];
        let headers: Vec<_> = validator.into_iter().chain([("accept", accept)]).collect();
        let client = &mut clients[version];
        let mut response = match query {
            WEBSOCKET => OpenResponse::open(client, &path).await,
            _ => OpenResponse::Response(client.get(&path, &headers).await),
        };
        etag = match placement {
            CursorPlacement::Query("offset") => None,
            _ => response.header("etag").map(str::to_owned),
        };
        // A poll without events returns only its cursor, in one of these headers.
        let poll_cursor = ["stream-next-offset", "last-event-id"];
        let poll_cursor = poll_cursor
            .iter()
            .find_map(|name| response.header(name))
            .map(str::to_owned);
        let Some(content_type) = response.header("content-type").map(str::to_owned) else {
            assert!(matches!(response, OpenResponse::Response(empty) if empty.head.status == 204));
            cursor = poll_cursor;
            continue;
        };
        let mut reader = RecordReader::new(&content_type, cursor.take());
        let mut wanted_events = random(4);
        // Events that arrive together with the last wanted event count too, because the cursor includes them.
        loop {
            let Some(bytes) = response.next().await else {
                assert!(
                    poll_cursor.is_some(),
                    "request {request}: only a poll has an end"
                );
                reader.cursor = poll_cursor;
                break;
            };
            let bytes = bytes.expect("the response was cut off");
            for record in reader.feed(&bytes) {
                assert!(record.end.is_none(), "request {request}: {record:?}");
                check.check_record(&record);
                wanted_events = wanted_events.saturating_sub(1);
            }
            last_read.store(check.last_number(), Ordering::Relaxed);
            // A poll is read to its end, because its cursor, from the head, stands for all of its events.
            if wanted_events == 0 && poll_cursor.is_none() {
                break;
            }
        }
        cursor = reader.cursor;
    }
    done.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
    drop(clients);
    assert!(
        check.last_number() + 1 > request_count(),
        "{}",
        check.last_number()
    );
    check
}
