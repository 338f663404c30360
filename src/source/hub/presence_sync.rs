//! The list of members of a hub with a presence backend, which the feed changes, and the task that tells the broker of the members of this node.

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
    node_members::NextUpdate,
    presence_backend::{
        ErasedPresenceBackend, MemberSnapshot, PresenceAnswer, PresenceBackend, PresenceConfig,
        PresenceUpdate,
    },
    presence_options::PresenceOptions,
    presence_table::{PresenceAction, PresenceChange, PresenceTable},
};
use crate::{event::EventId, sync::MutexGuard};

/// The way to the broker for the members of a hub.
pub(super) struct BrokerPresence {
    backend: Arc<dyn ErasedPresenceBackend>,
    /// Wakes the task that tells the broker of members.
    changed: Notify,
}

impl BrokerPresence {
    pub(super) fn new(backend: Arc<impl PresenceBackend>) -> Self {
        Self {
            backend,
            changed: Notify::new(),
        }
    }
}

impl fmt::Debug for BrokerPresence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerPresence").finish_non_exhaustive()
    }
}

impl HubConfig {
    /// Returns whether clients get the events of members, if the hub has members.
    pub(super) fn publishes_presence(&self) -> bool {
        !self.has_no_history() && !self.is_last_value
    }

    /// Returns what each request to a presence backend has.
    pub(super) fn presence_config(&self) -> PresenceConfig {
        let options = &self.presence;
        let suffix = self
            .publishes_presence()
            .then(|| options.topic_suffix.clone());
        PresenceConfig {
            node_timeout: options.node_timeout,
            max_members: options.max_members,
            max_total_members: options.max_total_members,
            topic_suffix: suffix,
        }
    }
}

/// A change of a list of members that the feed pushes, and the locked list.
pub(super) struct PushedChange<'a> {
    change: PresenceChange,
    presence: MutexGuard<'a, LockedPresence>,
}

/// What the feed of a hub does to the list of members.
impl HubState {
    pub(super) fn has_presence_backend(&self) -> bool {
        self.broker_presence().is_some()
    }

    fn broker_presence(&self) -> Option<&Arc<BrokerPresence>> {
        self.broker()?.presence.as_ref()
    }

    /// Locks the list of members, if `event` changes it.
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

    /// Changes the list of members, unless the list has the change already. `id` is that of the change's event.
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
        presence.table.apply(&pushed.change, &self.config.presence);
        if was_empty {
            // From now on, this node looks after the members of nodes that are gone.
            self.tell_broker_of_members(presence);
        }
    }

    /// Replaces the list of members by that of a snapshot.
    pub(super) fn set_members(self: &Arc<Self>, snapshot: MemberSnapshot) {
        if !self.has_presence_backend() {
            return;
        }
        let mut table = PresenceTable::default();
        for (topic, key, value) in snapshot.members {
            let change = PresenceChange::join(&topic, &key, value);
            table.apply(&change, &self.config.presence);
        }
        let replaced = {
            let presence = &mut *self.lock_presence();
            presence.loaded_up_to = Some(snapshot.last_id);
            let replaced = std::mem::replace(&mut presence.table, table);
            self.tell_broker_of_members(presence);
            replaced
        };
        drop(replaced);
    }
}

impl PresenceTable {
    /// Applies a change that a broker has published. A change that is applied again has no effect.
    fn apply(&mut self, change: &PresenceChange, options: &PresenceOptions) {
        let PresenceChange { topic, key, action } = change;
        match action {
            PresenceAction::Join(value) | PresenceAction::Update(value) => {
                let is_member = self.has_member(topic, key);
                if is_member {
                    self.update(topic, key, value.clone());
                } else {
                    // The broker has the same limits, so there is room, unless another program has written to it.
                    let _ = self.enter(topic, key, value.clone(), options);
                }
            }
            PresenceAction::Leave => drop(self.leave(topic, key, None)),
        }
    }
}

/// How the members of this node get to the broker.
impl HubState {
    /// Wakes the task that tells the broker of the members of this node, after members have changed.
    pub(super) fn tell_broker_of_members(self: &Arc<Self>, presence: &mut LockedPresence) {
        let Some(broker) = self.broker_presence() else {
            return;
        };
        let run = || tell_broker(Arc::downgrade(self), broker.clone());
        ensure_task(&mut presence.update_task, run);
        broker.changed.notify_one();
    }

    fn next_presence_update(&self) -> NextUpdate {
        let presence = &mut *self.lock_presence();
        match &mut presence.node {
            Some(node) => node.next_update(self.now(), &presence.table),
            None => NextUpdate::WithNextMember,
        }
    }

    fn on_presence_answer(&self, update: &PresenceUpdate, answer: Option<&PresenceAnswer>) {
        let presence = &mut *self.lock_presence();
        if let Some(node) = &mut presence.node {
            match answer {
                Some(answer) => node.on_answer(update, answer),
                None => node.on_failure(),
            }
        }
    }
}

/// Tells the broker of the members of this node, and renews the node's lease, until the hub is gone.
async fn tell_broker(hub: Weak<HubState>, broker: Arc<BrokerPresence>) {
    let mut backoff = FeedBackoff::default();
    loop {
        let next = hub
            .upgrade()
            .map(|hub| (hub.next_presence_update(), hub.now()));
        match next {
            None => return,
            Some((NextUpdate::WithNextMember, _)) => broker.changed.notified().await,
            Some((NextUpdate::At(time), now)) => {
                let changed = broker.changed.notified();
                let _ = timeout(time.saturating_sub(now), changed).await;
            }
            Some((NextUpdate::Now(update), _)) => {
                // A node that waits for too long after a failure would lose its lease.
                let (limit, max_delay) = (update.node_timeout() / 2, update.node_timeout() / 4);
                let answer = timeout(limit, broker.backend.update_members(update.clone())).await;
                let answer = answer.ok().and_then(Result::ok);
                let Some(hub) = hub.upgrade() else { return };
                hub.on_presence_answer(&update, answer.as_ref());
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
