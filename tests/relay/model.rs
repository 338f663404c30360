//! Random pushes, gaps, trims, page sizes, slow readers, failures and returns, compared with the list of all events.
//!
//! The promise: what a client gets from pages and from the log, over all of its subscriptions together, is exactly the events after its
//! cursor, in the order of the feed, each once; or a gap stands where events are missing.

use std::time::Duration;

use futures_util::StreamExt;
use proptest::prelude::*;
use tokio::time::{advance, timeout};
use tower_push::{
    Event, Gap, GapReason, Item, Relay,
    source::{
        StartPosition,
        relay::{RelaySubscriber, RelayWriter, UpstreamLimits},
    },
};

use crate::store::{Fault, Store, id, split_id, topic};

/// One step of a run.
#[derive(Clone, Debug)]
enum ModelStep {
    /// The store gets events.
    Append(u64),
    /// The feed gets the next events of the store.
    Push(usize),
    /// The feed cannot get the next event of the store.
    PushMissing,
    /// The store drops its oldest events.
    Trim(usize),
    /// The store is created anew.
    Recreate,
    /// The next read of the upstream fails.
    Fail,
    /// A new client subscribes, without a cursor, to all topics or to one.
    Connect {
        starts_at_oldest: bool,
        topic: Option<u64>,
    },
    /// A client disconnects, and returns with its cursor at once.
    Return(usize),
    /// A client reads items.
    Read { client: usize, items: usize },
    /// Time passes.
    Wait(u64),
}

fn random_step() -> impl Strategy<Value = ModelStep> {
    let topic = prop_oneof![3 => Just(None), 1 => (0_u64..3).prop_map(Some)];
    prop_oneof![
        6 => (1_u64..30).prop_map(ModelStep::Append),
        6 => (1_usize..30).prop_map(ModelStep::Push),
        1 => Just(ModelStep::PushMissing),
        1 => (1_usize..60).prop_map(ModelStep::Trim),
        1 => Just(ModelStep::Recreate),
        1 => Just(ModelStep::Fail),
        3 => (any::<bool>(), topic).prop_map(|(starts_at_oldest, topic)| ModelStep::Connect { starts_at_oldest, topic }),
        4 => (0_usize..8).prop_map(ModelStep::Return),
        8 => (0_usize..8, 1_usize..20).prop_map(|(client, items)| ModelStep::Read { client, items }),
        1 => (1_u64..10_000).prop_map(ModelStep::Wait),
    ]
}

/// The limits of a relay and its upstream.
#[derive(Clone, Debug)]
struct RelayLimits {
    log_events: usize,
    trimmed_ids: usize,
    page_events: usize,
    max_scan: usize,
    cache_bytes: usize,
}

fn random_limits() -> impl Strategy<Value = RelayLimits> {
    (
        1_usize..30,
        1_usize..40,
        1_usize..8,
        1_usize..60,
        0_usize..400,
    )
        .prop_map(
            |(log_events, trimmed_ids, page_events, max_scan, cache_bytes)| RelayLimits {
                log_events,
                trimmed_ids,
                page_events,
                max_scan,
                cache_bytes,
            },
        )
}

/// The one reader of the store in this process.
struct StoreReader {
    store: Store,
    feed: RelayWriter,
    epoch: u64,
    read: u64,
}

impl StoreReader {
    fn push(&mut self, count: usize) {
        for event in self.next_events(count) {
            self.feed.push(event).unwrap();
        }
    }

    fn push_missing(&mut self) {
        for event in self.next_events(1) {
            let (id, topic) = (event.id().unwrap().clone(), event.topic().cloned());
            self.feed.push_missing(id, topic).unwrap();
        }
    }

    /// Reads the next events of the store, after a gap of the feed if the store has lost events.
    fn next_events(&mut self, count: usize) -> Vec<Event> {
        let store = self.store.lock();
        if self.epoch != store.epoch {
            // The id before the first event of a new store is not always known.
            let mut gap = Gap::new(GapReason::Epoch);
            if store.epoch % 2 == 0 {
                gap = gap.resumed(id(store.epoch, 0));
            }
            self.feed.gap(&gap);
            (self.epoch, self.read) = (store.epoch, 0);
        }
        if self.read < store.removed {
            let gap = Gap::new(GapReason::Expired).missed(store.removed - self.read);
            self.feed.gap(&gap.resumed(id(self.epoch, store.removed)));
            self.read = store.removed;
        }
        let events: Vec<Event> = store.events_after(self.read).take(count).cloned().collect();
        self.read += events.len() as u64;
        events
    }
}

/// A client, which keeps its cursor when it returns.
struct ModelClient {
    subscriber: RelaySubscriber,
    topic: Option<u64>,
    /// The cursor as the client's transport keeps it.
    cursor: Option<tower_push::EventId>,
    /// The epoch and number up to which the client has every event. `None` before the first item, and after a gap whose end is not
    /// known.
    complete_to: Option<(u64, u64)>,
}

impl ModelClient {
    fn subscribe(
        relay: &Relay,
        topic_number: Option<u64>,
        start: StartPosition,
    ) -> RelaySubscriber {
        match topic_number {
            Some(number) => relay.with_topics([topic(number)]).subscribe_from(start),
            None => relay.subscribe_from(start),
        }
    }

    fn reconnect(&mut self, relay: &Relay) {
        let start = match &self.cursor {
            Some(cursor) => StartPosition::After(cursor.clone()),
            None => StartPosition::Now,
        };
        // A client without a cursor is a new one.
        self.complete_to = self.cursor.as_ref().and(self.complete_to);
        self.subscriber = Self::subscribe(relay, self.topic, start);
    }

    /// Returns whether an event that is for this client has a number between `from` and `to`, which are not included.
    fn lacks_event_between(&self, from: u64, to: u64) -> bool {
        (from + 1..to).any(|number| self.topic.is_none_or(|topic| number % 3 == topic))
    }

    /// Checks an item against what the client has.
    fn check(&mut self, item: &Item) -> Result<(), TestCaseError> {
        match item {
            Item::Event(event) => {
                let (epoch, number) = split_id(event.id().unwrap());
                prop_assert!(self.topic.is_none_or(|topic| number % 3 == topic));
                if let Some((complete_epoch, complete)) = self.complete_to {
                    prop_assert_eq!(complete_epoch, epoch);
                    prop_assert!(complete < number, "{number} is repeated after {complete}");
                    let has_hole = self.lacks_event_between(complete, number);
                    prop_assert!(!has_hole, "hole between {complete} and {number}");
                }
                self.complete_to = Some((epoch, number));
            }
            Item::Cursor(cursor) => {
                let (epoch, number) = split_id(cursor);
                if let Some((complete_epoch, complete)) = self.complete_to {
                    prop_assert_eq!(complete_epoch, epoch);
                    let has_hole = self.lacks_event_between(complete, number + 1);
                    prop_assert!(
                        complete <= number && !has_hole,
                        "cursor {number} after {complete}"
                    );
                }
                self.complete_to = Some((epoch, number));
            }
            Item::Gap(gap) => self.check_gap(gap)?,
            Item::Ended { .. } => return Ok(()),
            other => prop_assert!(false, "{:?}", other),
        }
        self.cursor = item.cursor().or(self.cursor.as_ref()).cloned();
        Ok(())
    }

    fn check_gap(&mut self, gap: &Gap) -> Result<(), TestCaseError> {
        let resumed = gap.resumed.as_ref().map(split_id);
        if let (Some((epoch, complete)), Some((resumed_epoch, number))) =
            (self.complete_to, resumed)
        {
            let is_same_epoch = epoch == resumed_epoch;
            if is_same_epoch && gap.reason != GapReason::Epoch {
                prop_assert!(complete < number, "a gap from {complete} to {number}");
                // A client of one topic is complete up to a place that its last item does not tell.
                if let (Some(missed), None) = (gap.missed, self.topic) {
                    prop_assert_eq!(missed, number - complete);
                }
            }
            prop_assert!(is_same_epoch || gap.reason == GapReason::Epoch, "{gap:?}");
        }
        self.complete_to = resumed;
        Ok(())
    }

    /// Reads up to `max_items` items. Returns `Ok(true)` if the client has to wait for longer than `max_wait`.
    async fn read(
        &mut self,
        relay: &Relay,
        max_items: usize,
        max_wait: Duration,
    ) -> Result<bool, TestCaseError> {
        for _ in 0..max_items {
            match timeout(max_wait, self.subscriber.next()).await {
                Err(_) => return Ok(true),
                Ok(None) => self.reconnect(relay),
                Ok(Some(item)) => {
                    let item = item.map_err(|error| TestCaseError::fail(error.to_string()))?;
                    self.check(&item)?;
                    if let Item::Ended { retry } = item {
                        advance(retry).await;
                    }
                }
            }
        }
        Ok(false)
    }
}

/// How long the store takes for a page. A client that waits for no longer is between two pages, or leaves while one is being read.
const READ_TIME: Duration = Duration::from_millis(1);

async fn run_steps(limits: RelayLimits, steps: Vec<ModelStep>) -> Result<(), TestCaseError> {
    let store = Store::default();
    store.lock().delay = READ_TIME;
    let upstream_limits = UpstreamLimits::new()
        .max_page_events(limits.page_events)
        .max_scan(limits.max_scan)
        .max_cache_bytes(limits.cache_bytes);
    let (feed, relay) = Relay::builder()
        .max_events(limits.log_events)
        .max_trimmed_ids(limits.trimmed_ids)
        .start_after(id(0, 0))
        .upstream(store.clone())
        .upstream_limits(upstream_limits)
        .build();
    let mut reader = StoreReader {
        store: store.clone(),
        feed,
        epoch: 0,
        read: 0,
    };
    let mut clients: Vec<ModelClient> = Vec::new();
    for step in steps {
        match step {
            ModelStep::Append(count) => store.append(count),
            ModelStep::Push(count) => reader.push(count),
            ModelStep::PushMissing => reader.push_missing(),
            ModelStep::Trim(count) => store.lock().trim(count),
            ModelStep::Recreate => store.lock().recreate(),
            ModelStep::Fail => store.lock().faults.push_back(Fault::Fail),
            ModelStep::Connect {
                starts_at_oldest,
                topic,
            } => {
                let start = match starts_at_oldest {
                    true => StartPosition::Oldest,
                    false => StartPosition::Now,
                };
                clients.push(ModelClient {
                    subscriber: ModelClient::subscribe(&relay, topic, start),
                    topic,
                    cursor: None,
                    complete_to: None,
                });
            }
            ModelStep::Return(client) => {
                if let Some(client) = clients.get_mut(client) {
                    client.reconnect(&relay);
                }
            }
            ModelStep::Read { client, items } => {
                if let Some(client) = clients.get_mut(client) {
                    client.read(&relay, items, READ_TIME).await?;
                }
            }
            ModelStep::Wait(millis) => advance(Duration::from_millis(millis)).await,
        }
    }
    // Everything works again, and every client gets to the end of the store.
    store.lock().faults.clear();
    store.append(3);
    reader.push(usize::MAX);
    let end = split_id(&store.lock().last_id());
    for client in &mut clients {
        let is_waiting = read_to_end(client, &relay).await?;
        prop_assert!(is_waiting, "the client gets items for ever");
        if let Some((epoch, complete)) = client.complete_to {
            let lacks_rest = client.lacks_event_between(complete, end.1 + 1);
            prop_assert!(
                epoch == end.0 && !lacks_rest,
                "at {epoch}.{complete} of {end:?}"
            );
        }
    }
    prop_assert_eq!(relay.subscriber_count(), clients.len());
    Ok(())
}

/// Reads until the client waits although all its time-outs have passed.
async fn read_to_end(client: &mut ModelClient, relay: &Relay) -> Result<bool, TestCaseError> {
    for _ in 0..3 {
        if !client.read(relay, 10_000, 100 * READ_TIME).await? {
            return Ok(false);
        }
        advance(Duration::from_secs(10)).await;
    }
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn clients_get_each_event_once_or_a_gap(
        limits in random_limits(),
        steps in proptest::collection::vec(random_step(), 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run_steps(limits, steps))?;
    }
}
