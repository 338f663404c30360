//! How publications wake the readers of a hub in an event loop, which drives many connections in one task.
//!
//! An event loop has a group of readers for each topic that has many subscribers. A publication to such a topic wakes the event loop once, and the
//! event loop polls all readers of the group. A topic with few subscribers, such as the topic of one user, has no group: a group takes more
//! memory than the wakers of a few readers in the topic's wait list. A publication to a topic without a group wakes the wakers of its readers. So an
//! event wakes only readers of its topics, and a reader is in the event loop's queue at most once for all of its topics without a group.
//!
//! # Invariant: no reader sleeps through an event
//! [`TopicState::wake_readers`](crate::source::hub::topic_state::TopicState::wake_readers) is called after the change for which readers are woken. It first changes
//! the topic's status, and then wakes the wait list. A group stores its waker for a status, and its readers were polled after all changes up to this
//! status. So each later change wakes the group. For a topic without a group, the readers store their own wakers in the topic's wait
//! list, and [`HubState`](crate::source::hub::hub_state::HubState) says why no wake-up is lost.

use std::sync::Arc;

use super::HubReader;
use crate::source::WatchedLog;

/// The least number of subscribers of a topic with groups. A topic with fewer subscribers takes less memory without groups.
///
/// The number is 1 in the loom tests, because they have no time for more subscribers.
const MIN_GROUP_SUBSCRIBERS: usize = if cfg!(tower_push_loom) { 1 } else { 4 };

impl HubReader {
    /// Returns the topics that have many subscribers, and no longer stores a waker in them. The caller wakes the reader's task instead: it polls the
    /// reader once more, and then whenever the status of one of the returned topics changes.
    ///
    /// A topic that the reader reads only up to a `history_end` is not returned: the reader leaves it there, and the event loop would still poll the
    /// reader at each change of the topic.
    pub(in crate::source::hub) fn delegate_wakeups(&mut self) -> Vec<Arc<dyn WatchedLog>> {
        let topics = self.topics.iter().map(|reader| &*reader.topic);
        let counts = self.hub().subscriber_counts(topics);
        let mut logs: Vec<Arc<dyn WatchedLog>> = Vec::new();
        for (reader, subscribers) in self.topics.iter_mut().zip(counts) {
            if reader.history_end.is_some() || subscribers < MIN_GROUP_SUBSCRIBERS {
                continue;
            }
            if let Some(key) = reader.key.take() {
                reader.topic.deregister_reader(&key);
            }
            logs.push(reader.topic.clone());
        }
        logs
    }
}
