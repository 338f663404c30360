//! A broker in memory, with faults, and the servers that show its events.

use std::{
    cmp::Ordering,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::Value;
pub(crate) use testkit::epoch_ids::{id, split_id};
use tower_push::{
    Error, Event, EventId, Gap, GapReason, Hub,
    source::{
        TopicSet,
        hub::{
            HubBackend, HubBuilder, HubEvent, HubWriter, MemberSnapshot, PresenceAnswer,
            PresenceBackend, PresenceRequest,
        },
        relay::{Page, PageRequest, PushError, UpstreamError},
    },
};

use crate::presence_ledger::PresenceLedger;

/// A list of numbered events. The id of an event is `epoch.number`. Clones are the same broker.
#[derive(Clone, Default)]
pub(crate) struct Broker(Arc<Mutex<BrokerState>>);

#[derive(Default)]
pub(crate) struct BrokerState {
    pub(crate) epoch: u64,
    /// The number of the last event that was removed; 0 if there was none.
    pub(crate) removed: u64,
    /// Whether the gaps of pages say how many events are missing, of all topics.
    pub(crate) counts_missed: bool,
    pub(crate) events: VecDeque<HubEvent>,
    /// All events of the current epoch, also those that were removed.
    pub(crate) history: Vec<HubEvent>,
    /// The keys of publications, and their ids.
    keys: Vec<(TopicSet, Box<str>, EventId)>,
    pub(crate) requests: Vec<PageRequest>,
    /// How many of the next calls fail.
    pub(crate) failures: usize,
    /// How long each call takes.
    pub(crate) delay: Duration,
    pub(crate) presence: PresenceLedger,
    /// All events of members since `presence` was created.
    pub(crate) presence_log: Vec<HubEvent>,
    /// How many of the next requests about members are applied, and not answered.
    pub(crate) lost_answers: usize,
    /// How many requests about members were made.
    pub(crate) presence_requests: usize,
    started_at: Option<tokio::time::Instant>,
    /// Requests about members that arrive after later ones.
    pub(crate) delayed: Vec<PresenceRequest>,
    /// How many of the next requests about members are delayed.
    pub(crate) delays: usize,
}

impl BrokerState {
    pub(crate) fn last_number(&self) -> u64 {
        self.removed + self.events.len() as u64
    }

    pub(crate) fn last_id(&self) -> EventId {
        id(self.epoch, self.last_number())
    }

    pub(crate) fn append(&mut self, event: HubEvent) -> EventId {
        let id = id(self.epoch, self.last_number() + 1);
        let event = event.with_event_id(id.clone());
        self.events.push_back(event.clone());
        self.history.push(event);
        id
    }

    /// Applies a request about members, and appends the events.
    fn apply_members(&mut self, request: &PresenceRequest) -> PresenceAnswer {
        let mut events = Vec::new();
        let now = tokio::time::Instant::now();
        let now = now - *self.started_at.get_or_insert(now);
        let answer = self.presence.apply(request, now, &mut events);
        for event in events {
            self.presence_log.push(event.clone());
            self.append(event);
        }
        answer
    }

    pub(crate) fn members(&self) -> MemberSnapshot {
        let mut snapshot = MemberSnapshot::new(self.last_id());
        for ((topic, key), (value, _)) in &self.presence.members {
            snapshot.insert(topic.clone(), key.clone(), Value::clone(value));
        }
        snapshot
    }

    pub(crate) fn trim(&mut self, count: usize) {
        let count = count.min(self.events.len());
        self.events.drain(..count);
        self.removed += count as u64;
    }

    /// Loses the last events, as a broker does that was restored from an old copy. Later events get the ids of the lost ones.
    pub(crate) fn lose_last(&mut self, count: usize) {
        let kept = self.events.len().saturating_sub(count);
        self.events.truncate(kept);
        self.history.truncate(self.last_number() as usize);
    }

    pub(crate) fn recreate(&mut self) {
        self.epoch += 1;
        self.removed = 0;
        self.events.clear();
        self.history.clear();
    }

    fn events_after(&self, number: u64) -> impl Iterator<Item = &HubEvent> {
        let skipped = number.saturating_sub(self.removed) as usize;
        self.events.iter().skip(skipped)
    }

    fn page(&self, request: &PageRequest) -> Result<Page<HubEvent>, UpstreamError> {
        let (epoch, number) = split_id(request.after());
        if epoch != self.epoch || number > self.last_number() {
            return Err(UpstreamError::Lost(GapReason::Epoch));
        }
        let scanned: Vec<_> = self
            .events_after(number)
            .take(request.max_events())
            .collect();
        let last = scanned.last().and_then(|event| event.event().id().cloned());
        let requested = scanned
            .into_iter()
            .filter(|event| event.is_requested(request));
        let mut page = Page::new(requested.cloned().collect());
        if let Some(last) = last {
            page = page.scanned_to(last);
        }
        if number < self.removed {
            let mut gap = Gap::new(GapReason::Expired).resumed(id(epoch, self.removed));
            gap.missed = self.counts_missed.then_some(self.removed - number);
            page = page.after_gap(gap);
        }
        Ok(page)
    }
}

impl Broker {
    pub(crate) fn lock(&self) -> MutexGuard<'_, BrokerState> {
        self.0.lock().unwrap()
    }

    /// Publishes an event with this text.
    pub(crate) fn publish(&self, topics: &[&str], text: &str) -> EventId {
        let topics = TopicSet::try_from(topics.to_vec()).unwrap();
        let event = HubEvent::new(topics, Event::text(text));
        self.lock().append(event)
    }

    /// Starts a server that has the last `tail` events.
    pub(crate) fn node(&self, hub: HubBuilder, tail: u64) -> Node {
        let (epoch, last) = {
            let broker = self.lock();
            let first = broker.last_number().saturating_sub(tail);
            (broker.epoch, first.max(broker.removed))
        };
        // The members of a later moment than the first event.
        let members = self.lock().members();
        let (mut feed, hub) = hub.build_with_presence(self.clone(), id(epoch, last));
        feed.set_members(members);
        let mut node = Node {
            broker: self.clone(),
            hub,
            feed,
            epoch,
            first: last,
            read: last,
        };
        node.push(usize::MAX);
        node
    }

    /// Waits, and takes a failure.
    async fn answer(&self) -> bool {
        let delay = self.lock().delay;
        tokio::time::sleep(delay).await;
        let mut broker = self.lock();
        let fails = broker.failures > 0;
        broker.failures -= usize::from(fails);
        !fails
    }
}

impl HubBackend for Broker {
    async fn publish(&self, event: HubEvent, key: Option<Box<str>>) -> Result<EventId, Error> {
        if !self.answer().await {
            return Err(Error::publish_failed("the broker is away"));
        }
        let mut broker = self.lock();
        let topics = event.topics().clone();
        let Some(key) = key else {
            return Ok(broker.append(event));
        };
        let known =
            |(other, name, _): &&(TopicSet, Box<str>, EventId)| *other == topics && *name == key;
        if let Some((.., id)) = broker.keys.iter().find(known) {
            return Ok(id.clone());
        }
        let id = broker.append(event);
        broker.keys.push((topics, key, id.clone()));
        Ok(id)
    }

    async fn read_page(&self, request: PageRequest) -> Result<Page<HubEvent>, UpstreamError> {
        self.lock().requests.push(request.clone());
        if !self.answer().await {
            return Err("the broker is away".into());
        }
        self.lock().page(&request)
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        let (a, b) = (split_id(a), split_id(b));
        (a.0 == b.0).then(|| a.1.cmp(&b.1))
    }
}

impl PresenceBackend for Broker {
    async fn update_members(&self, request: PresenceRequest) -> Result<PresenceAnswer, Error> {
        self.lock().presence_requests += 1;
        if !self.answer().await {
            return Err(Error::publish_failed("the broker is away"));
        }
        let mut broker = self.lock();
        if broker.delays > 0 {
            broker.delays -= 1;
            broker.delayed.push(request);
            return Err(Error::publish_failed("the request is delayed"));
        }
        let answer = broker.apply_members(&request);
        for late in std::mem::take(&mut broker.delayed) {
            broker.apply_members(&late);
        }
        if broker.lost_answers > 0 {
            broker.lost_answers -= 1;
            return Err(Error::publish_failed("the answer is lost"));
        }
        Ok(answer)
    }
}

/// A server: a hub, and the reader of the broker that fills it.
pub(crate) struct Node {
    broker: Broker,
    pub(crate) hub: Hub,
    feed: HubWriter,
    epoch: u64,
    /// The number of the event before the first one that was pushed since the last gap.
    first: u64,
    read: u64,
}

impl Node {
    /// Returns the epoch and the number of the last event that was pushed.
    pub(crate) fn position(&self) -> (u64, u64) {
        (self.epoch, self.read)
    }

    /// Pushes the next events of the broker, or a gap where events are missing.
    pub(crate) fn push(&mut self, count: usize) {
        let broker = self.broker.lock();
        if self.epoch != broker.epoch {
            // The id before the first event of a new broker is not always known.
            self.feed.set_members(broker.members());
            let mut gap = Gap::new(GapReason::Epoch);
            if broker.epoch % 2 == 0 {
                gap = gap.resumed(id(broker.epoch, 0));
            }
            self.feed.gap(&gap);
            (self.epoch, self.first, self.read) = (broker.epoch, 0, 0);
        }
        if self.read > broker.last_number() {
            // The broker has lost its last events.
            self.feed.set_members(broker.members());
            let gap = Gap::new(GapReason::Epoch).resumed(broker.last_id());
            self.feed.gap(&gap);
            (self.first, self.read) = (broker.last_number(), broker.last_number());
        }
        if self.read < broker.removed {
            self.feed.set_members(broker.members());
            let gap = Gap::new(GapReason::Expired).resumed(id(self.epoch, broker.removed));
            self.feed.gap(&gap);
            (self.first, self.read) = (broker.removed, broker.removed);
        }
        let events = broker.events_after(self.read).take(count);
        let events: Vec<_> = events.cloned().collect();
        drop(broker);
        for event in events {
            self.read += 1;
            self.feed.push(event).unwrap();
        }
    }

    /// Pushes the last events again, as a reader does that has reconnected.
    pub(crate) fn push_again(&mut self, count: u64) {
        let broker = self.broker.lock();
        let from = self.read.saturating_sub(count).max(self.first);
        let from = from.max(broker.removed);
        if self.epoch != broker.epoch || from >= self.read {
            return;
        }
        let events = broker.events_after(from).take((self.read - from) as usize);
        let events: Vec<_> = events.cloned().collect();
        drop(broker);
        for event in events {
            let pushed = self.feed.push(event);
            assert_eq!(pushed, Err(PushError::DuplicateId));
        }
    }
}
