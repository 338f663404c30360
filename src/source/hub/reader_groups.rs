//! The waking of a hub's readers in an event loop, which drives many connections in one task.
//!
//! A reader joins the groups of its topics that have many subscribers. A publication to such a topic wakes each event loop once, and the event loop
//! polls the members of the topic's group. A topic with few subscribers, such as the topic of one user, has no group: a group takes more memory than
//! the wakers of a few readers in the topic's wait list. Such a topic wakes the connection's own waker. So a reader of both kinds of topics is woken for
//! events of its own topics only, and is in the event loop's queue once for all topics without a group.
//!
//! # Invariant: no reader sleeps through an event
//! [`TopicState::wake_readers`](super::topic_state::TopicState::wake_readers) changes the topic's status after everything that readers are woken for, and
//! before it wakes the wait list. So a group that has stored its waker for a status is woken for each later change, and its members were polled after all
//! earlier changes. The topics without a group keep the invariant of [`HubState`](super::hub_state::HubState).

use std::sync::Arc;

use super::hub_reader::HubReader;
use crate::source::WatchedLog;

/// The number of subscribers from which a topic has groups. A topic with fewer subscribers costs less without a group.
///
/// The loom tests have no time for many subscribers.
const MIN_GROUP_SUBSCRIBERS: usize = if cfg!(tower_push_loom) { 1 } else { 4 };

impl HubReader {
    /// Leaves the waking of the reader's task to the caller, for the topics that have many subscribers: from now on, the reader stores no waker in
    /// these topics. The caller polls the reader once more, and then whenever the status of one of the returned topics changes.
    ///
    /// A topic that the reader leaves before its client does is not returned: its event loop would continue to poll the reader for this topic.
    pub(super) fn delegate_wakeups(&mut self) -> Vec<Arc<dyn WatchedLog>> {
        let mut logs: Vec<Arc<dyn WatchedLog>> = Vec::new();
        for index in 0..self.topics.len() {
            let reader = &self.topics[index];
            if reader.history_end.is_some()
                || self.hub().subscriber_count(&reader.topic) < MIN_GROUP_SUBSCRIBERS
            {
                continue;
            }
            let reader = &mut self.topics[index];
            let key = reader.key.take();
            reader.topic.deregister_reader(key.as_ref());
            logs.push(reader.topic.clone());
        }
        logs
    }
}
