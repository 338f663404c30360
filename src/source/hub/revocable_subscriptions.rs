use std::{collections::HashMap, hash::Hash, sync::Arc};

use super::{topic_or_pattern::TopicOrPattern, topic_pattern::TopicPattern};
use crate::{
    event::Topic,
    sync::{AtomicBool, Mutex, Ordering, lock},
};

/// The open subscriptions whose access to topics can be revoked.
#[derive(Debug, Default)]
pub(super) struct RevocableSubscriptions(Mutex<RevocationTable>);

#[derive(Debug, Default)]
struct RevocationTable {
    /// The number of calls of [`RevocableSubscriptions::revoke`]. A subscription whose access was decided before such a call is decided again.
    revocation_count: u64,
    last_subscription: u64,
    topics: HashMap<Topic, AccessBySubscription>,
    patterns: HashMap<TopicPattern, AccessBySubscription>,
}

/// The access of subscriptions to one topic or pattern, by the numbers of the subscriptions.
type AccessBySubscription = HashMap<u64, RevocableAccess>;

/// A subscription's access to one topic or pattern.
#[derive(Debug)]
struct RevocableAccess {
    key: Option<Arc<str>>,
    flag: Arc<RevocationFlag>,
}

/// Whether a subscription has lost its access to one of its topics.
#[derive(Debug, Default)]
pub(super) struct RevocationFlag(AtomicBool);

/// Keeps a subscription registered in [`RevocableSubscriptions`], until [`RevocableSubscriptions::deregister`].
#[derive(Debug)]
pub(super) struct RevocableSubscription {
    number: u64,
    topics: Vec<Topic>,
    patterns: Vec<TopicPattern>,
    flag: Arc<RevocationFlag>,
}

/// The error of [`RevocableSubscriptions::register`]: access was revoked after the decision, so the caller must decide again.
#[derive(Debug)]
pub(super) struct StaleAccessDecision;

impl RevocationFlag {
    #[inline]
    pub(super) fn is_revoked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl RevocableSubscription {
    #[inline]
    pub(super) fn is_revoked(&self) -> bool {
        self.flag.is_revoked()
    }
}

impl RevocableSubscriptions {
    /// Returns the number of revocations so far. The caller reads this number before it decides about access.
    pub(super) fn count(&self) -> u64 {
        lock(&self.0).revocation_count
    }

    /// Registers a subscription of topics and patterns whose access was decided after [`count`](Self::count) had returned `decided_after`.
    ///
    /// # Errors
    /// [`StaleAccessDecision`] if access to any topic was revoked since.
    pub(super) fn register(
        &self,
        accesses: Vec<(TopicOrPattern, Option<Arc<str>>)>,
        decided_after: u64,
    ) -> Result<RevocableSubscription, StaleAccessDecision> {
        let mut table = lock(&self.0);
        if table.revocation_count != decided_after {
            return Err(StaleAccessDecision);
        }
        table.last_subscription += 1;
        let mut subscription = RevocableSubscription {
            number: table.last_subscription,
            topics: Vec::new(),
            patterns: Vec::new(),
            flag: Arc::default(),
        };
        for (requested, key) in accesses {
            table.insert(&mut subscription, requested, key);
        }
        Ok(subscription)
    }

    /// Adds a topic or a pattern to a registered subscription. See [`register`](Self::register).
    #[cfg(feature = "json")]
    pub(super) fn add(
        &self,
        subscription: &mut RevocableSubscription,
        requested: TopicOrPattern,
        key: Option<Arc<str>>,
        decided_after: u64,
    ) -> Result<(), StaleAccessDecision> {
        let mut table = lock(&self.0);
        if table.revocation_count != decided_after {
            return Err(StaleAccessDecision);
        }
        table.insert(subscription, requested, key);
        Ok(())
    }

    /// Removes a topic from a registered subscription.
    #[cfg(feature = "json")]
    pub(super) fn remove_topic(&self, subscription: &mut RevocableSubscription, topic: &Topic) {
        subscription.topics.retain(|other| other != topic);
        remove_access(&mut lock(&self.0).topics, topic, subscription.number);
    }

    /// Removes a pattern from a registered subscription.
    #[cfg(feature = "json")]
    pub(super) fn remove_pattern(
        &self,
        subscription: &mut RevocableSubscription,
        pattern: &TopicPattern,
    ) {
        subscription.patterns.retain(|other| other != pattern);
        remove_access(&mut lock(&self.0).patterns, pattern, subscription.number);
    }

    pub(super) fn deregister(&self, subscription: &RevocableSubscription) {
        let mut table = lock(&self.0);
        for topic in &subscription.topics {
            remove_access(&mut table.topics, topic, subscription.number);
        }
        for pattern in &subscription.patterns {
            remove_access(&mut table.patterns, pattern, subscription.number);
        }
    }

    /// Marks the subscriptions to the topic, and to patterns that match the topic, for whose member key `is_revoked` returns true. Returns the number
    /// of subscriptions that were not marked before. The caller wakes the readers.
    pub(super) fn revoke(
        &self,
        topic: &Topic,
        mut is_revoked: impl FnMut(Option<&str>) -> bool,
    ) -> usize {
        let mut table = lock(&self.0);
        table.revocation_count += 1;
        let of_topic = table.topics.get(topic).into_iter();
        let patterns = table.patterns.iter();
        let of_patterns = patterns
            .filter(|(pattern, _)| pattern.matches(topic))
            .map(|(_, entries)| entries);
        let entries = of_topic.chain(of_patterns).flat_map(HashMap::values);
        let revoked = entries.filter(|access| is_revoked(access.key.as_deref()));
        // A subscription may have several patterns that match.
        revoked
            .filter(|access| !access.flag.0.swap(true, Ordering::AcqRel))
            .count()
    }
}

impl RevocationTable {
    fn insert(
        &mut self,
        subscription: &mut RevocableSubscription,
        requested: TopicOrPattern,
        key: Option<Arc<str>>,
    ) {
        let flag = subscription.flag.clone();
        let entries = match &requested {
            TopicOrPattern::Topic(topic) => self.topics.entry(topic.clone()).or_default(),
            TopicOrPattern::Pattern(pattern) => self.patterns.entry(pattern.clone()).or_default(),
        };
        entries.insert(subscription.number, RevocableAccess { key, flag });
        match requested {
            TopicOrPattern::Topic(topic) => subscription.topics.push(topic),
            TopicOrPattern::Pattern(pattern) => subscription.patterns.push(pattern),
        }
    }
}

/// Removes the access of a subscription to a topic or a pattern.
fn remove_access<K: Eq + Hash>(table: &mut HashMap<K, AccessBySubscription>, key: &K, number: u64) {
    if let Some(entries) = table.get_mut(key) {
        entries.remove(&number);
        if entries.is_empty() {
            table.remove(key);
        }
    }
}
