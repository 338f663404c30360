use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    event::Topic,
    sync::{RwLock, lock_for_reading, lock_for_writing},
};

/// The numbers of the events, bytes and gaps that a guard's streams have sent of the topics with one label: an element of
/// [`GuardCounts::by_topic_label`](super::GuardCounts::by_topic_label).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicTraffic {
    /// The number of events that transports took from sources. An event counts once for each stream.
    pub events: u64,
    /// The total length of the payloads of these events, in bytes.
    pub bytes: u64,
    /// The number of gaps that transports took from sources.
    pub gaps: u64,
}

/// Counts events and gaps by a label of their topics. The number of labels is bounded.
pub(super) struct TopicLabelCounters {
    /// The maximum number of labels, without [`OTHER_LABEL`].
    max_labels: usize,
    label_of: Box<LabelFn>,
    counters: RwLock<HashMap<Box<str>, TrafficCounters>>,
    /// The counters of the topics whose labels have no counters of their own.
    other: TrafficCounters,
}

type LabelFn = dyn Fn(&Topic) -> &str + Send + Sync;

#[derive(Debug, Default)]
struct TrafficCounters {
    events: AtomicU64,
    bytes: AtomicU64,
    gaps: AtomicU64,
}

/// The label of the topics that exceed the maximum number of labels.
const OTHER_LABEL: &str = "other";

impl TopicLabelCounters {
    pub(super) fn new(
        max_labels: usize,
        label_of: impl Fn(&Topic) -> &str + Send + Sync + 'static,
    ) -> Self {
        Self {
            max_labels,
            label_of: Box::new(label_of),
            counters: RwLock::new(HashMap::new()),
            other: TrafficCounters::default(),
        }
    }

    /// Counts an event whose payload is `payload_len` bytes long.
    pub(super) fn record_event(&self, topic: &Topic, payload_len: usize) {
        self.with_counters(topic, |counters| {
            counters.events.fetch_add(1, Ordering::Relaxed);
            let bytes = payload_len as u64;
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        });
    }

    /// Counts a gap.
    pub(super) fn record_gap(&self, topic: &Topic) {
        self.with_counters(topic, |counters| {
            counters.gaps.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Calls `record` with the counters of the topic's label.
    fn with_counters(&self, topic: &Topic, record: impl FnOnce(&TrafficCounters)) {
        let label = (self.label_of)(topic);
        let exceeds_limit = |labels: &HashMap<_, _>| labels.len() >= self.max_labels;
        {
            let labels = lock_for_reading(&self.counters);
            match labels.get(label) {
                Some(counters) => return record(counters),
                None if label == OTHER_LABEL || exceeds_limit(&labels) => {
                    return record(&self.other);
                }
                None => {}
            }
        }
        let mut labels = lock_for_writing(&self.counters);
        match exceeds_limit(&labels) && !labels.contains_key(label) {
            true => record(&self.other),
            false => record(labels.entry(label.into()).or_default()),
        }
    }

    /// Returns the traffic of each label. The label `other` is included if it has any traffic.
    pub(super) fn snapshot(&self) -> BTreeMap<String, TopicTraffic> {
        let labels = lock_for_reading(&self.counters);
        let counts = labels.iter();
        let mut counts: BTreeMap<_, _> = counts
            .map(|(label, counters)| (label.to_string(), counters.snapshot()))
            .collect();
        let other = self.other.snapshot();
        if other != TopicTraffic::default() {
            counts.insert(OTHER_LABEL.to_owned(), other);
        }
        counts
    }
}

impl TrafficCounters {
    fn snapshot(&self) -> TopicTraffic {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TopicTraffic {
            events: load(&self.events),
            bytes: load(&self.bytes),
            gaps: load(&self.gaps),
        }
    }
}

impl fmt::Debug for TopicLabelCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicLabelCounters")
            .field("max_labels", &self.max_labels)
            .finish_non_exhaustive()
    }
}
