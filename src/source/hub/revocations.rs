use std::{collections::HashMap, sync::Arc};

use crate::{
    event::Topic,
    sync::{AtomicBool, Mutex, Ordering, lock},
};

/// The open subscriptions whose access to topics can be revoked.
#[derive(Debug, Default)]
pub(super) struct Revocations(Mutex<RevocationTable>);

#[derive(Debug, Default)]
struct RevocationTable {
    /// The number of calls of [`Revocations::revoke`]. A subscription whose access was decided before such a call is decided again.
    revocations: u64,
    last_subscription: u64,
    topics: HashMap<Topic, HashMap<u64, TopicMember>>,
}

/// A subscription's access to one topic.
#[derive(Debug)]
struct TopicMember {
    key: Option<Arc<str>>,
    flag: Arc<RevocationFlag>,
}

/// Whether a subscription has lost its access to one of its topics.
#[derive(Debug, Default)]
pub(super) struct RevocationFlag(AtomicBool);

/// Keeps a subscription registered in [`Revocations`], until [`Revocations::deregister`].
#[derive(Debug)]
pub(super) struct RevocableSubscription {
    number: u64,
    topics: Vec<Topic>,
    flag: Arc<RevocationFlag>,
}

/// The error of [`Revocations::register`]: access was revoked since the decision, so the caller must decide again.
#[derive(Debug)]
pub(super) struct AccessChanged;

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

impl Revocations {
    /// Returns the number of revocations so far. Read it before access is decided.
    pub(super) fn count(&self) -> u64 {
        lock(&self.0).revocations
    }

    /// Registers a subscription of topics whose access was decided after [`count`](Self::count) had returned `decided_after`.
    ///
    /// # Errors
    /// [`AccessChanged`] if access to any topic was revoked since.
    pub(super) fn register(
        &self,
        members: Vec<(Topic, Option<Arc<str>>)>,
        decided_after: u64,
    ) -> Result<RevocableSubscription, AccessChanged> {
        let mut table = lock(&self.0);
        if table.revocations != decided_after {
            return Err(AccessChanged);
        }
        table.last_subscription += 1;
        let mut subscription = RevocableSubscription {
            number: table.last_subscription,
            topics: Vec::with_capacity(members.len()),
            flag: Arc::default(),
        };
        for (topic, key) in members {
            table.insert(&mut subscription, topic, key);
        }
        Ok(subscription)
    }

    /// Adds a topic to a registered subscription. See [`register`](Self::register).
    #[cfg(feature = "json")]
    pub(super) fn add_topic(
        &self,
        subscription: &mut RevocableSubscription,
        topic: Topic,
        key: Option<Arc<str>>,
        decided_after: u64,
    ) -> Result<(), AccessChanged> {
        let mut table = lock(&self.0);
        if table.revocations != decided_after {
            return Err(AccessChanged);
        }
        table.insert(subscription, topic, key);
        Ok(())
    }

    /// Removes a topic from a registered subscription.
    #[cfg(feature = "json")]
    pub(super) fn remove_topic(&self, subscription: &mut RevocableSubscription, topic: &Topic) {
        subscription.topics.retain(|other| other != topic);
        lock(&self.0).remove(topic, subscription.number);
    }

    pub(super) fn deregister(&self, subscription: &RevocableSubscription) {
        let mut table = lock(&self.0);
        for topic in &subscription.topics {
            table.remove(topic, subscription.number);
        }
    }

    /// Marks the subscriptions of the topic whose member key matches. Returns their number. The caller wakes the topic's readers.
    pub(super) fn revoke(
        &self,
        topic: &Topic,
        mut is_revoked: impl FnMut(Option<&str>) -> bool,
    ) -> usize {
        let mut table = lock(&self.0);
        table.revocations += 1;
        let members = table
            .topics
            .get(topic)
            .into_iter()
            .flat_map(HashMap::values);
        let revoked = members.filter(|member| is_revoked(member.key.as_deref()));
        revoked
            .map(|member| member.flag.0.store(true, Ordering::Release))
            .count()
    }
}

impl RevocationTable {
    fn insert(
        &mut self,
        subscription: &mut RevocableSubscription,
        topic: Topic,
        key: Option<Arc<str>>,
    ) {
        let flag = subscription.flag.clone();
        let members = self.topics.entry(topic.clone()).or_default();
        members.insert(subscription.number, TopicMember { key, flag });
        subscription.topics.push(topic);
    }

    fn remove(&mut self, topic: &Topic, number: u64) {
        if let Some(members) = self.topics.get_mut(topic) {
            members.remove(&number);
            if members.is_empty() {
                self.topics.remove(topic);
            }
        }
    }
}
