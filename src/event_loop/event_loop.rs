use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    ConnectionPoll, DrivenConnection, TakenOutput,
    connection_waker::ConnectionWaker,
    group_memberships::{GroupMembership, GroupMemberships},
    log_group::{LogGroup, LogGroupKey},
    ready_queue::{NewConnection, ReadyEntry, ReadyQueue, TakeOutcome},
    timer_queue::{ScheduledTime, TimerQueue},
};

/// A task that drives many connections. The future is ready once the [`EventLoopSet`](super::EventLoopSet) was dropped and no connection is left.
///
/// The future must be polled outside of tokio's cooperative budget: it has a bound of its own, and a spent budget would keep connections from
/// registering for input.
pub(super) struct EventLoop {
    queue: Arc<ReadyQueue>,
    connections: ConnectionTable,
    groups: HashMap<LogGroupKey, LogGroup>,
    /// The entries that are polled next. Entries are moved here from `queue`.
    ready: VecDeque<ReadyEntry>,
    /// The members of a group whose output is written next. Empty between two batches.
    batch: Vec<BatchMember>,
    timers: TimerQueue,
    /// The timer for the first entry of `timers`. Created when there is an entry.
    sleep: Option<Pin<Box<Sleep>>>,
    is_set_dropped: bool,
    /// The number of connections, which the [`EventLoopSet`](super::EventLoopSet) reads to spread new connections.
    load: Arc<AtomicUsize>,
}

/// The connections of an event loop. The index of a connection does not change.
#[derive(Default)]
struct ConnectionTable {
    entries: Vec<Option<ConnectionEntry>>,
    free: Vec<u32>,
}

struct ConnectionEntry {
    connection: Box<dyn DrivenConnection>,
    waker: Waker,
    scheduled: ScheduledTime,
    memberships: GroupMemberships,
}

/// A connection whose output was taken from its log, and is written next.
struct BatchMember {
    index: u32,
    output: TakenOutput,
}

/// The number of polls after which an event loop returns to the scheduler of tokio, so that other tasks can run. 64 writes to a socket take about half a
/// millisecond.
pub(super) const MAX_POLLS_PER_TURN: usize = 64;

/// The number of members of a group that take output from their log, before the first of them writes its output.
const MEMBERS_PER_BATCH: usize = 16;

impl ConnectionTable {
    /// Adds the entry that `create` returns for its index.
    fn insert(&mut self, create: impl FnOnce(u32) -> ConnectionEntry) -> u32 {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(create(index));
            return index;
        }
        let index = self.entries.len() as u32;
        self.entries.push(Some(create(index)));
        index
    }

    fn remove(&mut self, index: u32) -> Option<ConnectionEntry> {
        let entry = self.entries.get_mut(index as usize)?.take()?;
        self.free.push(index);
        if self.free.len() == self.entries.len() {
            // No connection is left, so the memory that many connections needed is freed.
            *self = Self::default();
        }
        Some(entry)
    }

    fn get(&self, index: u32) -> Option<&ConnectionEntry> {
        self.entries.get(index as usize)?.as_ref()
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut ConnectionEntry> {
        self.entries.get_mut(index as usize)?.as_mut()
    }

    fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn scheduled_time(&self, index: u32) -> Option<ScheduledTime> {
        self.get(index).map(|entry| entry.scheduled)
    }
}

impl ConnectionEntry {
    /// Calls `call` with the connection. Returns `None` if `call` panics: the connection must then be closed.
    fn with_connection<T>(
        &mut self,
        call: impl FnOnce(&mut dyn DrivenConnection, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let mut cx = Context::from_waker(&self.waker);
        catch_unwind(AssertUnwindSafe(|| call(&mut *self.connection, &mut cx))).ok()
    }
}

impl EventLoop {
    pub(super) fn new(queue: Arc<ReadyQueue>, load: Arc<AtomicUsize>) -> Self {
        Self {
            queue,
            connections: ConnectionTable::default(),
            groups: HashMap::new(),
            ready: VecDeque::new(),
            batch: Vec::new(),
            timers: TimerQueue::new(Instant::now()),
            sleep: None,
            is_set_dropped: false,
            load,
        }
    }

    /// Polls at most [`MAX_POLLS_PER_TURN`] connections that are ready. Returns `true` if no more connections are ready.
    fn poll_ready_connections(&mut self, now: Instant) -> bool {
        self.queue.take(&mut self.ready);
        let mut polls_left = MAX_POLLS_PER_TURN / 2;
        polls_left += self.poll_past_deadlines(now, MAX_POLLS_PER_TURN / 2);
        while polls_left > 0 {
            let Some(entry) = self.ready.pop_front() else {
                return true;
            };
            polls_left -= 1;
            match entry {
                ReadyEntry::NewConnection(new) => {
                    let index = self.add_connection(*new);
                    self.poll_connection(index, now);
                }
                ReadyEntry::Connection(waker) => self.poll_connection(waker.on_taken(), now),
                ReadyEntry::Log(key) => {
                    if let Some(group) = self.groups.get(&key) {
                        group.on_taken();
                    }
                    polls_left = self.poll_group(key, polls_left, now);
                }
                ReadyEntry::LogPass(key) => polls_left = self.poll_group(key, polls_left, now),
                ReadyEntry::SetDropped => self.is_set_dropped = true,
            }
        }
        false
    }

    /// Polls the connections whose deadline has passed. Returns how many polls of `polls_left` are left.
    fn poll_past_deadlines(&mut self, now: Instant, mut polls_left: usize) -> usize {
        while polls_left > 0 {
            let connections = &self.connections;
            let scheduled = |index| connections.scheduled_time(index);
            let Some(index) = self.timers.take_due(now, scheduled) else {
                break;
            };
            if let Some(entry) = self.connections.get_mut(index) {
                entry.scheduled = ScheduledTime::default();
                self.poll_connection(index, now);
            }
            polls_left -= 1;
        }
        polls_left
    }

    /// Polls the members of a group, each once in a pass. The call polls at most `polls_left` members, and returns how many of these polls it has not
    /// used. If members of the pass remain, the next turn of the event loop polls them, after the connections that were woken meanwhile.
    fn poll_group(&mut self, key: LogGroupKey, mut polls_left: usize, now: Instant) -> usize {
        while polls_left > 0 {
            let Some(group) = self.groups.get_mut(&key) else {
                return polls_left;
            };
            let mut batch = [0; MEMBERS_PER_BATCH];
            let batch = &mut batch[..polls_left.min(MEMBERS_PER_BATCH)];
            let members = group.next_members(batch);
            if members.is_empty() {
                return polls_left;
            }
            polls_left -= members.len();
            self.poll_members(members, now);
        }
        self.ready.push_back(ReadyEntry::LogPass(key));
        0
    }

    /// Polls members of a group, because their log has changed: takes the output of all of them, and then writes it.
    fn poll_members(&mut self, members: &[u32], now: Instant) {
        for index in members {
            if let Some(entry) = self.connections.get(*index) {
                entry.connection.prefetch();
            }
        }
        let mut batch = std::mem::take(&mut self.batch);
        for index in members.iter().copied() {
            let Some(entry) = self.connections.get_mut(index) else {
                continue;
            };
            let taken = entry.with_connection(|connection, cx| connection.take_output(cx, now));
            match taken {
                Some(output) => batch.push(BatchMember { index, output }),
                None => self.remove_connection(index),
            }
        }
        for BatchMember { index, output } in batch.drain(..) {
            // No connection is added before the batch is written, so the index is still that of the same connection.
            if let Some(entry) = self.connections.get_mut(index) {
                let poll = entry
                    .with_connection(|connection, cx| connection.write_output(output, cx, now));
                self.handle_poll_result(index, poll.unwrap_or(ConnectionPoll::Closed));
            }
        }
        self.batch = batch;
    }

    /// Adds a connection. Returns its index.
    fn add_connection(&mut self, new: NewConnection) -> u32 {
        let NewConnection {
            connection,
            mut logs,
        } = new;
        let index = self.connections.insert(|index| ConnectionEntry {
            connection,
            waker: Waker::from(Arc::new(ConnectionWaker::new(index, &self.queue))),
            scheduled: ScheduledTime::default(),
            memberships: GroupMemberships::default(),
        });
        // A connection is at most once in each group.
        logs.sort_unstable_by_key(LogGroupKey::new);
        logs.dedup_by_key(|log| LogGroupKey::new(log));
        let memberships = logs.into_iter().map(|log| {
            let key = LogGroupKey::new(&log);
            let group = self.groups.entry(key);
            let group = group.or_insert_with(|| LogGroup::new(log, &self.queue));
            GroupMembership {
                key,
                member_index: group.add(index),
            }
        });
        let memberships = memberships.collect();
        if let Some(entry) = self.connections.get_mut(index) {
            entry.memberships = GroupMemberships::new(memberships);
        }
        index
    }

    /// Polls a connection because it was woken, or because its deadline has passed, or because it is new.
    fn poll_connection(&mut self, index: u32, now: Instant) {
        let Some(entry) = self.connections.get_mut(index) else {
            // The connection was closed before.
            return;
        };
        let poll = entry.with_connection(|connection, cx| connection.poll(cx, now));
        self.handle_poll_result(index, poll.unwrap_or(ConnectionPoll::Closed));
    }

    fn handle_poll_result(&mut self, index: u32, poll: ConnectionPoll) {
        match poll {
            ConnectionPoll::Closed => self.remove_connection(index),
            ConnectionPoll::Pending { deadline: None } => {}
            ConnectionPoll::Pending {
                deadline: Some(deadline),
            } => {
                if let Some(entry) = self.connections.get_mut(index) {
                    self.timers.schedule(index, &mut entry.scheduled, deadline);
                }
            }
        }
    }

    fn remove_connection(&mut self, index: u32) {
        let Some(entry) = self.connections.remove(index) else {
            return;
        };
        let ConnectionEntry {
            connection,
            memberships,
            ..
        } = entry;
        // Dropping a source can run the application's code, which may panic.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(connection)));
        self.load.fetch_sub(1, Ordering::Relaxed);
        for membership in memberships.as_slice() {
            self.remove_from_group(*membership);
        }
        let connections = &self.connections;
        let scheduled = |index| connections.scheduled_time(index);
        self.timers.remove_invalid(connections.len(), scheduled);
    }

    fn remove_from_group(&mut self, membership: GroupMembership) {
        let GroupMembership { key, member_index } = membership;
        let Some(group) = self.groups.get_mut(&key) else {
            return;
        };
        let moved = group.remove(member_index);
        if group.is_empty() {
            self.groups.remove(&key);
            if self.groups.is_empty() {
                self.groups = HashMap::new();
            }
        }
        if let Some(entry) = moved.and_then(|index| self.connections.get_mut(index)) {
            entry.memberships.set_member_index(key, member_index);
        }
    }

    /// Returns whether the first deadline has passed. If the deadline has not passed, `cx` is woken at the deadline.
    fn is_deadline_past(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(first) = self.timers.first() else {
            self.sleep = None;
            return false;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(first)));
        if sleep.deadline() != first {
            sleep.as_mut().reset(first);
        }
        sleep.as_mut().poll(cx).is_ready()
    }
}

impl Future for EventLoop {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.poll_ready_connections(Instant::now()) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.is_set_dropped && this.connections.len() == 0 && this.queue.close_if_empty() {
            return Poll::Ready(());
        }
        let outcome = this.queue.take_or_wait(&mut this.ready, cx.waker());
        if outcome == TakeOutcome::Taken || this.is_deadline_past(cx) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Drop for EventLoop {
    /// Closes all connections: the runtime is shut down, or no connection is left.
    fn drop(&mut self) {
        self.queue.close();
        for index in 0..self.connections.entries.len() {
            self.remove_connection(index as u32);
        }
    }
}
