use std::{
    num::NonZero,
    sync::Arc,
    task::{Wake, Waker},
};

use super::ready_queue::{ReadyEntry, ReadyQueue};
use crate::{
    source::WatchedLog,
    sync::{AtomicBool, Ordering, StoreWakerOutcome, WaiterKey},
};

/// The connections of one event loop that read the same log. A change of the log wakes the group once, and the event loop then polls all
/// members.
///
/// # Invariant: no reader sleeps through an event
/// A pass over the group loads the log's status, polls all members, and then stores the group's waker, unless the status has changed: in this case
/// another pass follows. So while the waker is stored, each member was polled after the last change of the log, and the next change wakes the group.
/// A reader that joins the group is polled once after it has joined. If the log has changed since the beginning of the last pass, the group has been
/// woken or will be woken, and the new pass also polls this reader.
///
/// A reader of several logs is a member of several groups. Each of these groups keeps the invariant by itself.
pub(super) struct LogGroup {
    log: Arc<dyn WatchedLog>,
    waiter: WaiterKey,
    waker: Arc<LogGroupWaker>,
    members: Vec<u32>,
    pass: Option<GroupPollPass>,
}

/// The state of a pass over a group, from its beginning until all members are polled.
#[derive(Clone, Copy, Debug)]
struct GroupPollPass {
    /// The status of the log at the beginning of the pass.
    log_status: u64,
    /// The number of members that are not polled yet. The pass polls from the last member to the first, so the unpolled members are the first
    /// ones. So if a member leaves, the last member, which takes its index, has been polled already.
    unpolled: usize,
}

/// Identifies the group of a log by the address of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LogGroupKey(NonZero<usize>);

impl LogGroupKey {
    pub(super) fn new(log: &Arc<dyn WatchedLog>) -> Self {
        let address = Arc::as_ptr(log).cast::<()>().addr();
        // An `Arc` has no address of 0.
        Self(NonZero::new(address).unwrap_or(NonZero::<usize>::MIN))
    }
}

struct LogGroupWaker {
    key: LogGroupKey,
    queue: Arc<ReadyQueue>,
    is_queued: AtomicBool,
}

impl Wake for LogGroupWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            // A closed queue has no event loop, and so no members.
            let _ = self.queue.push(ReadyEntry::Log(self.key));
        }
    }
}

impl LogGroup {
    /// Creates a group without members, and puts it into `queue` for its first pass.
    pub(super) fn new(log: Arc<dyn WatchedLog>, queue: &Arc<ReadyQueue>) -> Self {
        let waker = Arc::new(LogGroupWaker {
            key: LogGroupKey::new(&log),
            queue: queue.clone(),
            is_queued: AtomicBool::new(false),
        });
        waker.wake_by_ref();
        Self {
            waiter: log.register_waiter(),
            log,
            waker,
            members: Vec::new(),
            pass: None,
        }
    }

    /// Adds a connection. Returns its index in `members`.
    pub(super) fn add(&mut self, connection: u32) -> u32 {
        self.members.push(connection);
        self.members.len() as u32 - 1
    }

    /// Removes the member at `member_index`. Returns the connection that has this index afterwards: the one that was the last member.
    pub(super) fn remove(&mut self, member_index: u32) -> Option<u32> {
        let member_index = member_index as usize;
        self.members.swap_remove(member_index);
        if let Some(pass) = &mut self.pass {
            pass.unpolled = pass.unpolled.min(self.members.len());
        }
        if self.members.len() < self.members.capacity() / 4 {
            self.members.shrink_to(self.members.len() * 2);
        }
        self.members.get(member_index).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Records that the event loop has taken the group out of its queue. A pass must begin or continue after this call.
    pub(super) fn on_taken(&self) {
        self.waker.is_queued.swap(false, Ordering::AcqRel);
    }

    /// Fills `members` with the next connections to poll, and returns the filled part. The filled part is empty once all members were polled: this
    /// call completes the pass, and the group waits for the log or is in the queue again.
    pub(super) fn next_members<'a>(&mut self, members: &'a mut [u32]) -> &'a [u32] {
        let pass = self.pass.get_or_insert_with(|| GroupPollPass {
            log_status: self.log.status(),
            unpolled: self.members.len(),
        });
        if pass.unpolled > 0 {
            let count = members.len().min(pass.unpolled);
            pass.unpolled -= count;
            let next = &self.members[pass.unpolled..pass.unpolled + count];
            members[..count].copy_from_slice(next);
            return &members[..count];
        }
        let log_status = pass.log_status;
        self.pass = None;
        let waker = Waker::from(self.waker.clone());
        let outcome = (self.log).store_waker_unless_changed(&self.waiter, &waker, log_status);
        if outcome == StoreWakerOutcome::AlreadyReady {
            self.waker.wake_by_ref();
        }
        &[]
    }
}

impl Drop for LogGroup {
    fn drop(&mut self) {
        self.log.deregister_waiter(&self.waiter);
    }
}
