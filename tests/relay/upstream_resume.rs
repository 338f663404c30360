//! Clients whose cursors are not in the log: pages, sharing, limits, failures.

use std::{task::Poll, time::Duration};

use futures_util::{StreamExt, future::join_all};
use testkit::{body_text, describe_item, get_request_head, poll_next, read_ready_items};
use tokio::time::{Instant, advance, timeout};
use tower_push::{
    Event, Gap, GapReason, Item, KeepAlive, Push, Relay,
    event::Topic,
    source::{
        StartPosition,
        relay::{
            Page, PageRequest, RelayBuilder, RelaySubscriber, RelayWriter, Upstream, UpstreamError,
            UpstreamLimits,
        },
    },
    transport::{Chunked, Sse, Transport},
};

use crate::store::{Fault, Store, id, topic};

/// A relay of a store, whose log has the last events.
struct StoreRelay {
    store: Store,
    feed: RelayWriter,
    relay: Relay,
}

impl StoreRelay {
    /// Appends `events` to a store, and pushes the last `pushed` of them to a relay.
    fn new(events: u64, pushed: u64, builder: RelayBuilder) -> Self {
        Self::with_upstream(events, pushed, builder, |store| store)
    }

    /// Like [`new`](Self::new), but the relay reads from the upstream that `upstream` returns for the store.
    fn with_upstream<U: Upstream>(
        events: u64,
        pushed: u64,
        builder: RelayBuilder,
        upstream: impl FnOnce(Store) -> U,
    ) -> Self {
        let store = Store::default();
        store.append(events);
        let start = id(0, events - pushed);
        let builder = builder.upstream(upstream(store.clone()));
        let (feed, relay) = builder.start_after(start).build();
        let mut relay = Self { store, feed, relay };
        relay.push_rest(events - pushed);
        relay
    }

    /// Pushes the store's events after this number.
    fn push_rest(&mut self, number: u64) {
        for event in self.store.lock().events_after(number) {
            self.feed.push(event.clone()).unwrap();
        }
    }

    fn resume(&self, number: u64) -> RelaySubscriber {
        self.relay
            .subscribe_from(StartPosition::After(id(0, number)))
    }
}

fn limits() -> UpstreamLimits {
    UpstreamLimits::new().max_page_events(10)
}

fn builder() -> RelayBuilder {
    Relay::builder().max_events(20).upstream_limits(limits())
}

/// Reads items until none comes for a second, described by [`describe_item`].
async fn read_items(subscriber: &mut RelaySubscriber) -> Vec<String> {
    let mut read = Vec::new();
    while let Ok(Some(item)) = timeout(Duration::from_secs(1), subscriber.next()).await {
        read.push(describe_item(item));
    }
    read
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn is_ended(item: &str) -> bool {
    item.starts_with("Ok(Ended")
}

#[tokio::test(start_paused = true)]
async fn pages_lead_to_log_without_hole_or_duplicate() {
    let mut relay = StoreRelay::new(100, 20, builder());
    let mut subscriber = relay.resume(45);
    assert_eq!(read_items(&mut subscriber).await, numbers(46..=100));
    // The four pages have the events 46 to 85. The log has the rest.
    assert_eq!(relay.store.read_count(), 4);
    relay.store.append(1);
    relay.push_rest(100);
    assert_eq!(read_items(&mut subscriber).await, ["101"]);
    let counts = relay.relay.counts();
    assert_eq!((counts.upstream_resumes, counts.upstream_reads), (1, 4));
    assert_eq!((counts.missed_on_resume, counts.lost_cursors), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn cursor_in_log_asks_nobody() {
    let relay = StoreRelay::new(100, 20, builder());
    for number in 80..=100 {
        let expected = numbers(number + 1..=100);
        assert_eq!(read_items(&mut relay.resume(number)).await, expected);
    }
    assert_eq!(relay.store.read_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn events_pushed_during_pages_come_once() {
    let mut relay = StoreRelay::new(100, 20, builder());
    let mut subscriber = relay.resume(50);
    let mut read = Vec::new();
    for number in 100..200 {
        let next = timeout(Duration::from_secs(1), subscriber.next()).await;
        read.push(describe_item(next.unwrap().unwrap()));
        relay.store.append(1);
        relay.push_rest(number);
    }
    read.extend(read_items(&mut subscriber).await);
    assert_eq!(read, numbers(51..=200));
}

#[tokio::test(start_paused = true)]
async fn lost_cursor_is_gap_and_then_the_log() {
    let relay = StoreRelay::new(30, 5, builder());
    for foreign in [id(7, 3), id(0, 31)] {
        let mut subscriber = relay
            .relay
            .subscribe_from(StartPosition::After(foreign.clone()));
        let Some(Ok(Item::Gap(gap))) = subscriber.next().await else {
            panic!("not a gap")
        };
        assert_eq!((gap.reason, gap.missed), (GapReason::Epoch, None));
        assert_eq!(
            (gap.requested, gap.resumed),
            (Some(foreign), Some(id(0, 25)))
        );
        assert_eq!(read_items(&mut subscriber).await, numbers(26..=30));
    }
    assert_eq!(relay.relay.counts().lost_cursors, 2);
}

#[tokio::test(start_paused = true)]
async fn upstream_gap_stands_before_its_page() {
    let relay = StoreRelay::new(100, 20, builder());
    relay.store.lock().trim(60);
    let mut subscriber = relay.resume(50);
    let Some(Ok(Item::Gap(gap))) = subscriber.next().await else {
        panic!("not a gap")
    };
    assert_eq!((gap.reason, gap.missed), (GapReason::Expired, Some(10)));
    assert_eq!(
        (gap.requested, gap.resumed),
        (Some(id(0, 50)), Some(id(0, 60)))
    );
    assert_eq!(read_items(&mut subscriber).await, numbers(61..=100));
    assert_eq!(relay.relay.counts().missed_on_resume, 10);
}

#[tokio::test(start_paused = true)]
async fn client_far_behind_gets_gap_at_scan_limit() {
    let relay = StoreRelay::new(200, 20, builder().upstream_limits(limits().max_scan(35)));
    let items = read_items(&mut relay.resume(10)).await;
    let expected: Vec<_> = [numbers(11..=50), vec!["expired None".to_owned()]].concat();
    assert_eq!(items, [expected, numbers(181..=200)].concat());
    assert_eq!(relay.store.read_count(), 4);
    assert_eq!(relay.relay.counts().lost_cursors, 1);
}

/// A store whose pages have at most three events, as if the events were large, and whose gaps have no cursor after the missing events.
struct SmallPages(Store);

impl Upstream for SmallPages {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let page = self.0.read_page(request.with_max_events(3)).await?;
        let (gap, events) = page.into_parts();
        let page = Page::new(events);
        Ok(match gap {
            Some(mut gap) => {
                gap.resumed = None;
                page.after_gap(gap)
            }
            None => page,
        })
    }
}

/// Appends 100 events to a store with [`SmallPages`], and pushes the last 20 of them to a relay.
fn small_page_relay(limits: UpstreamLimits) -> StoreRelay {
    StoreRelay::with_upstream(100, 20, builder().upstream_limits(limits), SmallPages)
}

/// The store has lost all events, and the log has the last ones.
#[tokio::test(start_paused = true)]
async fn gap_without_events_is_one_gap_and_then_the_log() {
    let relay = small_page_relay(limits());
    relay.store.lock().trim(100);
    let items = read_items(&mut relay.resume(50)).await;
    assert_eq!(items[0], "expired None");
    assert_eq!(items[1..], numbers(81..=100));
    assert_eq!(relay.store.read_count(), 1);
    let counts = relay.relay.counts();
    assert_eq!((counts.lost_cursors, counts.missed_on_resume), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn gap_of_page_read_again_comes_once() {
    let relay = small_page_relay(limits().max_cache_bytes(1));
    relay.store.lock().trim(60);
    let mut slow = relay.resume(50);
    assert_eq!(
        describe_item(slow.next().await.unwrap()),
        "expired Some(10)"
    );
    // Another client's page takes the place of the slow client's.
    let _ = relay.resume(70).next().await;
    assert_eq!(read_items(&mut slow).await, numbers(61..=100));
    assert_eq!(relay.relay.counts().missed_on_resume, 10);
}

#[tokio::test(start_paused = true)]
async fn scan_limit_counts_each_event_once() {
    let relay = small_page_relay(limits().max_scan(35).max_cache_bytes(1));
    assert_eq!(read_items(&mut relay.resume(50)).await, numbers(51..=100));
    let mut slow = relay.resume(50);
    for number in 51..=80 {
        assert_eq!(
            describe_item(slow.next().await.unwrap()),
            number.to_string()
        );
        let _ = relay.resume(number - 20).next().await;
    }
    assert_eq!(read_items(&mut slow).await, numbers(81..=100));
}

#[tokio::test(start_paused = true)]
async fn scan_limit_ahead_of_feed_ends_stream() {
    let relay = StoreRelay::new(20, 20, builder().upstream_limits(limits().max_scan(20)));
    relay.store.append(100);
    let items = read_items(&mut relay.resume(40)).await;
    assert_eq!(items[..20], numbers(41..=60));
    assert!(items.len() == 21 && is_ended(&items[20]), "{items:?}");
}

#[tokio::test(start_paused = true)]
async fn cursor_ahead_of_feed_waits_for_feed() {
    let mut relay = StoreRelay::new(20, 20, builder());
    relay.store.append(5);
    let mut ahead = relay.resume(25);
    let mut behind = relay.resume(22);
    assert_eq!(read_items(&mut ahead).await, [""; 0]);
    assert_eq!(read_items(&mut behind).await, numbers(23..=25));
    let reads = relay.store.read_count();
    relay.push_rest(20);
    relay.store.append(2);
    relay.push_rest(25);
    for subscriber in [&mut ahead, &mut behind] {
        assert_eq!(read_ready_items(subscriber), numbers(26..=27));
    }
    assert_eq!(relay.store.read_count(), reads, "from the log");
}

/// The feed never gets to the client's cursor, because the store has removed the event since.
#[tokio::test(start_paused = true)]
async fn cursor_that_feed_skips_is_asked_again() {
    let mut relay = StoreRelay::new(20, 20, builder());
    relay.store.append(5);
    let mut ahead = relay.resume(25);
    assert_eq!(read_items(&mut ahead).await, [""; 0]);
    relay.store.append(3);
    relay.push_rest(26);
    assert_eq!(read_items(&mut ahead).await, [""; 0], "not yet");
    advance(Duration::from_secs(6)).await;
    assert_eq!(read_items(&mut ahead).await, numbers(26..=28));
    relay.store.append(1);
    relay.push_rest(28);
    assert_eq!(read_items(&mut ahead).await, ["29"]);
}

/// The store has removed the event of the client's cursor, and the writer announces that.
#[tokio::test(start_paused = true)]
async fn gap_of_feed_ends_wait_for_feed() {
    let mut relay = StoreRelay::new(20, 20, builder());
    relay.store.append(5);
    let mut ahead = relay.resume(25);
    assert_eq!(read_items(&mut ahead).await, [""; 0]);
    relay.store.append(3);
    relay.store.lock().trim(26);
    let start = Instant::now();
    relay
        .feed
        .gap(&Gap::new(GapReason::Expired).resumed(id(0, 26)));
    let items = [ahead.next().await, ahead.next().await, ahead.next().await];
    let items = items.map(|item| describe_item(item.unwrap()));
    assert_eq!(items, ["expired Some(1)", "27", "28"]);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn gap_of_feed_is_lost_cursor_for_upstream() {
    let mut relay = StoreRelay::new(50, 20, builder());
    let mut resuming = relay.resume(5);
    for number in 6..=10 {
        assert_eq!(
            describe_item(resuming.next().await.unwrap()),
            number.to_string()
        );
    }
    let mut live = relay.resume(50);
    assert_eq!(read_items(&mut live).await, [""; 0]);
    relay.store.lock().recreate();
    relay
        .feed
        .gap(&Gap::new(GapReason::Epoch).resumed(id(1, 0)));
    relay.store.append(2);
    relay.push_rest(0);
    assert_eq!(read_items(&mut live).await, ["epoch None", "1", "2"]);
    let rest = read_items(&mut resuming).await;
    let page = numbers(11..=15);
    assert_eq!(
        rest,
        [page, ["epoch None", "1", "2"].map(str::to_owned).to_vec()].concat()
    );
}

#[tokio::test(start_paused = true)]
async fn clients_with_one_cursor_share_upstream_reads() {
    let relay = StoreRelay::new(100, 20, builder());
    relay.store.lock().delay = Duration::from_millis(50);
    let mut subscribers: Vec<_> = (0..10_000).map(|_| relay.resume(40)).collect();
    let reads = subscribers.iter_mut().map(async |subscriber| {
        for number in 41..=100 {
            let item = subscriber.next().await.unwrap();
            assert_eq!(describe_item(item), number.to_string());
        }
    });
    join_all(reads).await;
    assert_eq!(relay.store.read_count(), 4);
}

#[tokio::test(start_paused = true)]
async fn reads_and_queue_are_bounded() {
    let limits = limits()
        .max_reads(3)
        .max_queued_reads(5)
        .retry(Duration::from_secs(8));
    let relay = StoreRelay::new(1000, 20, builder().upstream_limits(limits));
    relay.store.lock().delay = Duration::from_millis(50);
    let mut subscribers: Vec<_> = (100..200).map(|number| relay.resume(number)).collect();
    let first_items = join_all(subscribers.iter_mut().map(StreamExt::next)).await;
    let (mut events, mut retries) = (0, Vec::new());
    for item in first_items {
        match item.unwrap().unwrap() {
            Item::Event(_) => events += 1,
            Item::Ended { retry } => retries.push(retry),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((events, retries.len()), (8, 92));
    let range = Duration::from_secs(4)..=Duration::from_secs(12);
    assert!(
        retries.iter().all(|retry| range.contains(retry)),
        "{retries:?}"
    );
    retries.sort();
    retries.dedup();
    assert!(retries.len() > 50, "clients return at different times");
    assert_eq!(relay.store.lock().max_concurrent_reads, 3);
    assert_eq!(relay.relay.counts().unavailable, 92);
}

#[tokio::test(start_paused = true)]
async fn failed_read_ends_stream_for_now() {
    for fault in [
        Fault::Fail,
        Fault::Panic,
        Fault::Hang,
        Fault::EventWithoutId,
    ] {
        let relay = StoreRelay::new(100, 20, builder());
        relay.store.lock().faults.push_back(fault);
        let mut subscriber = relay.resume(75);
        let item = subscriber.next().await.unwrap();
        assert!(
            matches!(item, Ok(Item::Ended { .. })),
            "{fault:?}: {item:?}"
        );
        assert!(subscriber.next().await.is_none());
        assert_eq!(relay.relay.counts().failed_reads, 1);
        let error = relay.relay.last_read_error().unwrap().to_string();
        let expected = match fault {
            Fault::Fail => "the store is away",
            Fault::Panic => "the read has panicked, or its runtime has ended",
            Fault::Hang => "deadline has elapsed",
            Fault::EventWithoutId => "the page has an event whose id is no cursor",
        };
        assert_eq!(error, expected);
        advance(Duration::from_secs(2)).await;
        assert_eq!(read_items(&mut relay.resume(75)).await, numbers(76..=100));
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_leaves_affects_nobody() {
    let relay = StoreRelay::new(100, 20, builder());
    relay.store.lock().delay = Duration::from_millis(50);
    let mut leaving = relay.resume(70);
    let mut staying = relay.resume(70);
    assert!(poll_next(&mut leaving).is_pending());
    assert!(poll_next(&mut staying).is_pending());
    drop(leaving);
    assert_eq!(read_items(&mut staying).await, numbers(71..=100));
    drop(staying);
    assert_eq!(relay.relay.subscriber_count(), 0);
}

/// A client that polls and does not wait sees only what is ready. Its page is read in the meantime.
#[tokio::test(start_paused = true)]
async fn client_that_polls_gets_its_page_next_time() {
    let relay = StoreRelay::new(100, 20, builder());
    relay.store.lock().delay = Duration::from_millis(50);
    for cursor in [40, 60] {
        assert!(poll_next(&mut relay.resume(cursor)).is_pending());
        tokio::time::sleep(Duration::from_secs(5)).await;
        let items = read_ready_items(&mut relay.resume(cursor));
        assert_eq!(items, numbers(cursor + 1..=cursor + 10));
    }
    assert!(poll_next(&mut relay.resume(101)).is_pending());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let items = read_ready_items(&mut relay.resume(101));
    assert_eq!(items[0], "epoch None");
}

/// Many clients stop in the middle of their pages. Their pages are dropped, and read anew when they go on.
#[tokio::test(start_paused = true)]
async fn page_of_slow_client_is_read_again() {
    let relay = StoreRelay::new(
        500,
        20,
        builder().upstream_limits(limits().max_cache_bytes(500)),
    );
    let mut slow: Vec<_> = (100..150)
        .map(|number| (number, relay.resume(number)))
        .collect();
    for (number, subscriber) in &mut slow {
        let item = subscriber.next().await.unwrap();
        assert_eq!(describe_item(item), (*number + 1).to_string());
    }
    for (number, subscriber) in &mut slow {
        assert_eq!(read_items(subscriber).await, numbers(*number + 2..=500));
    }
}

#[tokio::test(start_paused = true)]
async fn upstream_is_told_topics() {
    let relay = StoreRelay::new(100, 20, builder());
    let topics = [topic(1), topic(1), Topic::new("unknown").unwrap()];
    let topical = relay.relay.with_topics(topics);
    let mut subscriber = topical.subscribe_from(StartPosition::After(id(0, 40)));
    let items = read_items(&mut subscriber).await;
    let events: Vec<_> = items.iter().filter(|item| *item != "cursor").collect();
    let expected = (41..=100).filter(|number| number % 3 == 1);
    assert_eq!(
        events,
        expected
            .map(|number| number.to_string())
            .collect::<Vec<_>>()
            .iter()
            .collect::<Vec<_>>()
    );
    let store = relay.store.lock();
    let request = &store.requests[0];
    assert_eq!(
        request.topics().unwrap(),
        [topic(1), Topic::new("unknown").unwrap()]
    );
    assert_eq!((request.after(), request.max_events()), (&id(0, 40), 10));
    // Another cursor position of the same topics, and all topics, are other pages.
    assert_eq!(store.requests.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn trimmed_events_after_join_come_from_upstream() {
    let mut relay = StoreRelay::new(100, 20, builder());
    let mut subscriber = relay.resume(85);
    // The client has not read yet, and the log drops what it needs.
    relay.store.append(50);
    relay.push_rest(100);
    assert_eq!(read_items(&mut subscriber).await, numbers(86..=150));
    assert_eq!(relay.relay.counts().lagged, 0);
}

#[tokio::test(start_paused = true)]
async fn connected_client_that_lags_gets_gap() {
    let mut relay = StoreRelay::new(100, 20, builder());
    let mut subscriber = relay.resume(100);
    assert_eq!(read_ready_items(&mut subscriber), [""; 0]);
    relay.store.append(50);
    relay.push_rest(100);
    let items = read_items(&mut subscriber).await;
    assert_eq!(items[0], "lagged Some(30)");
    assert_eq!(items[1..], numbers(131..=150));
    assert_eq!(relay.store.read_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn feed_that_is_gone_ends_upstream_resume() {
    for is_finished in [true, false] {
        let StoreRelay { store, feed, relay } = StoreRelay::new(30, 5, builder());
        store.append(5);
        let mut ahead = relay.subscribe_from(StartPosition::After(id(0, 35)));
        assert_eq!(read_items(&mut ahead).await, [""; 0]);
        if is_finished {
            feed.close()
        } else {
            drop(feed)
        }
        let items = read_ready_items(&mut ahead);
        assert_eq!(items.len(), 1);
        assert_eq!(items[0] == "finished", is_finished, "{items:?}");
        assert_eq!(is_ended(&items[0]), !is_finished, "{items:?}");
    }
}

#[tokio::test]
async fn without_runtime_stream_ends_for_now() {
    let relay = StoreRelay::new(100, 20, builder());
    let thread = std::thread::spawn(move || {
        let mut subscriber = relay.resume(5);
        matches!(
            poll_next(&mut subscriber),
            Poll::Ready(Some(Ok(Item::Ended { .. })))
        )
    });
    assert!(thread.join().unwrap());
}

#[tokio::test(start_paused = true)]
async fn transports_tell_when_to_return() {
    let relay = StoreRelay::new(100, 20, builder());
    let get = async |transport: &dyn Transport| {
        relay.store.lock().faults.push_back(Fault::Fail);
        advance(Duration::from_secs(2)).await;
        let mut head = get_request_head("/", &[("last-event-id", "0.5")]);
        let response = transport
            .respond(&mut head, Push::new(relay.relay.clone()))
            .await;
        assert_eq!(response.status(), 200);
        body_text(response.into_body()).await
    };
    let keep_alive = KeepAlive::disabled();
    let sse = get(&Sse::new().keep_alive(keep_alive)).await;
    assert!(
        sse.contains("retry: ") && sse.contains("event: end\n"),
        "{sse}"
    );
    assert!(!sse.contains("id: 0.6"), "{sse}");
    let ndjson = get(&Chunked::new(tower_push::format::Ndjson::new())).await;
    assert!(
        ndjson.contains(r#""end":{"finished":false,"retry":"#),
        "{ndjson}"
    );
}

#[tokio::test(start_paused = true)]
async fn large_page_is_sent_whole() {
    let store = Store::default();
    let (mut feed, relay) = Relay::builder()
        .max_events(1)
        .upstream(store.clone())
        .upstream_limits(limits().max_cache_bytes(1))
        .build();
    {
        let mut store = store.lock();
        for number in 1..=25_u64 {
            let event = Event::text("x".repeat(1000)).with_event_id(id(0, number));
            store.events.push_back(event.clone());
            feed.push(event).unwrap();
        }
    }
    let mut subscriber = relay.subscribe_from(StartPosition::After(id(0, 0)));
    let mut read = 0;
    while let Ok(Some(item)) = timeout(Duration::from_secs(1), subscriber.next()).await {
        assert!(matches!(item, Ok(Item::Event(_))), "{item:?}");
        read += 1;
    }
    assert_eq!(read, 25);
}
