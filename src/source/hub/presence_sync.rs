//! How a hub with a presence backend and its broker share members: the writer changes the hub's list of members, and a task tells the broker of the
//! members of this node.

use std::{
    cmp::Ordering,
    fmt,
    sync::{Arc, Weak},
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tower_push_proto::feed_backoff::FeedBackoff;

use super::{
    HubEvent, control_events,
    hub_builder::HubConfig,
    hub_presence::{LockedPresence, ensure_task},
    hub_state::HubState,
    local_members::NextPresenceRequest,
    presence_backend::{
        ErasedPresenceBackend, MemberSnapshot, PresenceAnswer, PresenceBackend, PresenceRequest,
    },
    presence_table::{PresenceAction, PresenceChange, PresenceTable},
};
use crate::{event::EventId, sync::MutexGuard};

/// The presence backend of a hub, and the wake-up of the task that makes its requests.
pub(super) struct BrokerPresence {
    backend: Arc<dyn ErasedPresenceBackend>,
    /// Wakes the task that tells the broker of members.
    members_changed: Notify,
}

impl BrokerPresence {
    pub(super) fn new(backend: Arc<impl PresenceBackend>) -> Self {
        Self {
            backend,
            members_changed: Notify::new(),
        }
    }
}

impl fmt::Debug for BrokerPresence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerPresence").finish_non_exhaustive()
    }
}

impl HubConfig {
    /// Returns whether clients would get the events of members: not in a hub whose topics have no history, or their last value only.
    pub(super) fn publishes_presence(&self) -> bool {
        !self.has_no_history() && !self.is_last_value
    }
}

/// A change of a member whose event the writer pushes, and the locked list of members.
pub(super) struct PushedChange<'a> {
    change: PresenceChange,
    presence: MutexGuard<'a, LockedPresence>,
}

/// The methods by which a writer changes the list of members.
impl HubState {
    pub(super) fn has_presence_backend(&self) -> bool {
        self.broker_presence().is_some()
    }

    fn broker_presence(&self) -> Option<&Arc<BrokerPresence>> {
        self.broker()?.presence.as_ref()
    }

    /// Locks the list of members if `event` is the event of a member's change.
    pub(super) fn lock_presence_for(&self, event: &HubEvent) -> Option<PushedChange<'_>> {
        let topic = event
            .members_topic
            .as_ref()
            .filter(|_| self.has_presence_backend())?;
        let change = control_events::parse_presence_changed(topic, &event.event)?;
        Some(PushedChange {
            change,
            presence: self.lock_presence(),
        })
    }

    /// Applies a change to the list of members, unless the list has the change already. `id` is the id of the change's event.
    pub(super) fn apply_pushed_change(
        self: &Arc<Self>,
        pushed: &mut PushedChange<'_>,
        id: &EventId,
    ) {
        let presence = &mut *pushed.presence;
        if let (Some(loaded), Some(broker)) = (&presence.loaded_up_to, self.broker()) {
            match broker.upstream.compare_ids(id, loaded) {
                Some(Ordering::Less | Ordering::Equal) => return,
                Some(Ordering::Greater) => presence.loaded_up_to = None,
                None => {}
            }
        }
        let was_empty = presence.table.is_empty();
        presence.table.apply(&pushed.change);
        if was_empty {
            // While the hub has members, the task makes requests, which remove the members of nodes that are gone.
            self.tell_broker_of_members(presence);
        }
    }

    /// Replaces the list of members with the members of a snapshot. If the snapshot may lack members, keeps those that it does not have. Returns
    /// whether the list is another one than before.
    pub(super) fn set_members(self: &Arc<Self>, snapshot: MemberSnapshot) -> bool {
        if !self.has_presence_backend() {
            return false;
        }
        let mut table = PresenceTable::default();
        for (topic, key, value) in snapshot.members {
            let change = PresenceChange::join(&topic, &key, value);
            table.apply(&change);
        }
        let node_timeout = self.config.presence.node_timeout;
        let complete_in = node_timeout.saturating_sub(snapshot.storage_age);
        let (replaced, is_changed) = {
            let presence = &mut *self.lock_presence();
            if let Some(local) = &mut presence.local {
                local.tell_again_unless_listed(&table);
            }
            // The events after the snapshot's members tell of the kept ones, too.
            let is_complete = complete_in.is_zero() || !table.keep_members_of(&presence.table);
            presence.loaded_up_to = is_complete.then_some(snapshot.last_id);
            presence.complete_at = (!is_complete).then(|| self.now().saturating_add(complete_in));
            let is_changed = !table.has_same_members(&presence.table);
            let replaced = std::mem::replace(&mut presence.table, table);
            self.tell_broker_of_members(presence);
            (replaced, is_changed)
        };
        drop(replaced);
        is_changed
    }

    pub(super) fn must_read_members_again(&self) -> bool {
        let presence = self.lock_presence();
        presence.complete_at.is_some_and(|at| at <= self.now())
    }
}

impl PresenceTable {
    /// Applies a change that a broker has published. Applying a change a second time has no effect.
    fn apply(&mut self, change: &PresenceChange) {
        let PresenceChange { topic, key, action } = change;
        match action {
            PresenceAction::Join(value) | PresenceAction::Update(value) => {
                if self.has_member(topic, key) {
                    self.update(topic, key, value.clone());
                } else {
                    // The broker keeps the limits. The list of this node may have more members for a while, because a leave may come after the
                    // join that it has made room for.
                    self.insert(topic, key, value.clone());
                }
            }
            PresenceAction::Leave => drop(self.leave(topic, key, None)),
        }
    }

    /// Adds the members of another list that this list lacks. Returns whether there are any.
    fn keep_members_of(&mut self, other: &Self) -> bool {
        let before = self.len();
        for (topic, key, value) in other.iter() {
            if !self.has_member(topic, key) {
                self.insert(topic, key, value.clone());
            }
        }
        self.len() > before
    }

    /// Returns whether another list has the same members with the same values.
    fn has_same_members(&self, other: &Self) -> bool {
        let is_member = |(topic, key, value)| self.value(topic, key) == Some(value);
        self.len() == other.len() && other.iter().all(is_member)
    }
}

/// The methods that tell the broker of the members of this node.
impl HubState {
    /// Wakes the task that tells the broker of the members of this node, after members have changed.
    pub(super) fn tell_broker_of_members(self: &Arc<Self>, presence: &mut LockedPresence) {
        let Some(broker) = self.broker_presence() else {
            return;
        };
        let run = || run_presence_requests(Arc::downgrade(self), broker.clone());
        ensure_task(&mut presence.request_task, run);
        broker.members_changed.notify_one();
    }

    fn next_presence_request(&self) -> NextPresenceRequest {
        let presence = &mut *self.lock_presence();
        match &mut presence.local {
            Some(local) => local.next_request(self.now(), &presence.table),
            None => NextPresenceRequest::WithNextMember,
        }
    }

    fn on_presence_answer(&self, request: &PresenceRequest, answer: Option<&PresenceAnswer>) {
        let presence = &mut *self.lock_presence();
        if answer == Some(&PresenceAnswer::LeaseLost) && !presence.table.is_empty() {
            // If the broker has lost its members, no event tells of those whose node is gone.
            let complete_at = self.now().saturating_add(request.node_timeout());
            presence.complete_at.get_or_insert(complete_at);
        }
        if let Some(local) = &mut presence.local {
            match answer {
                Some(answer) => local.on_answer(request, answer),
                None => local.on_failure(),
            }
        }
    }
}

/// Tells the broker of the members of this node, and renews the node's lease, until the hub is dropped.
async fn run_presence_requests(hub: Weak<HubState>, broker: Arc<BrokerPresence>) {
    let mut backoff = FeedBackoff::default();
    loop {
        let next = hub
            .upgrade()
            .map(|hub| (hub.next_presence_request(), hub.now()));
        match next {
            None => return,
            Some((NextPresenceRequest::WithNextMember, _)) => {
                broker.members_changed.notified().await
            }
            Some((NextPresenceRequest::At(time), now)) => {
                let changed = broker.members_changed.notified();
                let _ = timeout(time.saturating_sub(now), changed).await;
            }
            Some((NextPresenceRequest::Now(request), _)) => {
                // The limits are shorter than the lease, so that a node does not lose its lease because it waits.
                let (limit, max_delay) = (request.node_timeout() / 2, request.node_timeout() / 4);
                let answer = timeout(limit, broker.backend.update_members(request.clone())).await;
                let answer = answer.ok().and_then(Result::ok);
                let Some(hub) = hub.upgrade() else { return };
                hub.on_presence_answer(&request, answer.as_ref());
                drop(hub);
                match answer {
                    Some(PresenceAnswer::Applied { .. }) => backoff = FeedBackoff::default(),
                    Some(PresenceAnswer::LeaseLost) | None => {
                        sleep(backoff.next_delay().min(max_delay)).await
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::Topic,
        source::hub::{PresenceOptions, presence_table::TooManyMembers},
    };

    #[test]
    fn join_that_comes_before_the_leave_that_made_room_is_applied() {
        let options = PresenceOptions::new().max_members(1);
        let topic = Topic::new("room").unwrap();
        let value = Arc::new(serde_json::Value::Null);
        let (first, second) = (Arc::from("first"), Arc::from("second"));
        let mut list = PresenceTable::default();
        list.enter(&topic, &first, value.clone(), &options).unwrap();
        list.apply(&PresenceChange::join(&topic, &second, value));
        list.apply(&PresenceChange::leave(&topic, &first));
        assert!(list.has_member(&topic, &second));
        assert!(!list.has_member(&topic, &first));
        assert_eq!(list.check_room(&topic, &options), Err(TooManyMembers));
    }

    #[test]
    fn list_that_may_lack_members_removes_none() {
        let topic = Topic::new("room").unwrap();
        let list = |keys: &[&str], value: u8| {
            let mut list = PresenceTable::default();
            for key in keys {
                let value = Arc::new(value.into());
                list.apply(&PresenceChange::join(&topic, &Arc::from(*key), value));
            }
            list
        };
        let old = list(&["ada", "bob"], 1);
        let mut read = list(&["bob", "eve"], 2);
        assert!(!read.has_same_members(&old));
        assert!(read.keep_members_of(&old));
        assert!(!read.keep_members_of(&old));
        let mut expected = list(&["bob", "eve"], 2);
        expected.apply(&PresenceChange::join(
            &topic,
            &"ada".into(),
            Arc::new(1.into()),
        ));
        assert!(read.has_same_members(&expected) && expected.has_same_members(&read));
    }
}
