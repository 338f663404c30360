//! A list of tasks that wait for a change of a value beside the list.
//!
//! # Invariant: no wake-up is lost
//! A waiting task stores its waker under a lock of the list, and checks the value once more before it releases that lock. A task
//! first changes the value, and then takes the wakers under the same lock. So either the waiting task sees the change,
//! or the changing task sees the waker. The loom tests of the list's users (`loom_tests.rs`) try every order of these steps.

use std::{
    num::NonZero,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
};

use super::{Mutex, lock};

/// The wakers of waiting tasks.
///
/// The wakers are spread over several shards, each with a lock of its own, so that tasks on different threads rarely contend.
#[derive(Debug)]
pub(crate) struct WaitList {
    shards: Box<[Mutex<Shard>]>,
}

/// A part of a [`WaitList`] with a lock of its own.
#[derive(Debug, Default)]
struct Shard {
    /// One waiter for each registered task. A waiter's index does not change until its task deregisters.
    waiters: Vec<Waiter>,
    /// Indexes of the waiters that belong to no task. The next registered tasks get these indexes.
    free: Vec<usize>,
    /// Indexes of all waiters with a waker, and of some waiters whose task has stored a waker and then deregistered. A wake-up
    /// visits only these waiters, so that its cost does not depend on how many tasks are registered.
    queued: Vec<usize>,
}

/// The entry of one registered task in a [`WaitList`].
#[derive(Debug, Default)]
struct Waiter {
    /// The task's waker while it waits.
    waker: Option<Waker>,
    /// Whether the waiter's index is in [`Shard::queued`].
    is_queued: bool,
}

/// Identifies a registered task in its [`WaitList`] until [`WaitList::deregister`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WaiterKey {
    shard: u32,
    /// The index in [`Shard::waiters`], plus 1.
    index_plus_one: NonZero<u32>,
}

/// The result of [`WaitList::store_waker_unless`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum StoreWakerOutcome {
    /// The waker is stored: the task waits until the next [`WaitList::wake_all`].
    Stored,
    /// What the task waits for is already there, and no waker is stored.
    AlreadyReady,
}

impl StoreWakerOutcome {
    /// Returns whether the waker is stored, so that the task will be woken.
    pub(crate) fn is_stored(self) -> bool {
        self == Self::Stored
    }
}

impl WaitList {
    /// Creates a list of `shard_count` shards.
    pub(crate) fn new(shard_count: usize) -> Self {
        let shards = (0..shard_count).map(|_| Mutex::new(Shard::default()));
        Self {
            shards: shards.collect(),
        }
    }

    /// Adds a task to the shard `shard_hint` modulo the number of shards. Pass 0, 1, 2 … as hints, so that the
    /// tasks are spread over all shards.
    pub(crate) fn register(&self, shard_hint: usize) -> WaiterKey {
        let shard = shard_hint % self.shards.len();
        let mut locked = lock(&self.shards[shard]);
        let index = locked.free.pop().unwrap_or(locked.waiters.len());
        if index == locked.waiters.len() {
            locked.waiters.push(Waiter::default());
        }
        WaiterKey {
            shard: shard as u32,
            index_plus_one: NonZero::<u32>::MIN.saturating_add(index as u32),
        }
    }

    /// Stores the waker of a registered task, unless `is_ready` returns true.
    pub(crate) fn store_waker_unless(
        &self,
        key: &WaiterKey,
        waker: &Waker,
        is_ready: impl FnOnce() -> bool,
    ) -> StoreWakerOutcome {
        let mut shard = lock(&self.shards[key.shard as usize]);
        if is_ready() {
            return StoreWakerOutcome::AlreadyReady;
        }
        let Shard {
            waiters, queued, ..
        } = &mut *shard;
        let waiter = &mut waiters[key.index()];
        if (waiter.waker.as_ref()).is_some_and(|stored| stored.will_wake(waker)) {
            return StoreWakerOutcome::Stored;
        }
        let replaced = waiter.waker.replace(waker.clone());
        if !std::mem::replace(&mut waiter.is_queued, true) {
            queued.push(key.index());
        }
        drop(shard);
        // The waker is dropped outside the lock: dropping it can drop a task, which then deregisters from this shard.
        drop(replaced);
        StoreWakerOutcome::Stored
    }

    /// Wakes all tasks that wait. A waker that panics affects neither the caller nor the other tasks.
    pub(crate) fn wake_all(&self) {
        for shard in &self.shards {
            let mut wakers = lock(shard).take_wakers().into_iter();
            // Wakers are called outside the lock, because they can run any code.
            let mut wake = || wakers.by_ref().for_each(Waker::wake);
            while catch_unwind(AssertUnwindSafe(&mut wake)).is_err() {}
        }
    }

    /// Removes a task from the list.
    pub(crate) fn deregister(&self, key: &WaiterKey) {
        let mut shard = lock(&self.shards[key.shard as usize]);
        let waker = shard.waiters[key.index()].waker.take();
        shard.free.push(key.index());
        if shard.free.len() == shard.waiters.len() {
            // No task is registered any more, and the memory that many tasks needed is freed.
            *shard = Shard::default();
        }
        drop(shard);
        // The waker is dropped outside the lock: dropping it can drop a task, which then deregisters from this shard.
        drop(waker);
    }
}

impl WaiterKey {
    fn index(&self) -> usize {
        self.index_plus_one.get() as usize - 1
    }
}

impl Shard {
    /// Takes the wakers of all tasks that wait.
    fn take_wakers(&mut self) -> Vec<Waker> {
        let Self {
            waiters, queued, ..
        } = self;
        let mut wakers = Vec::with_capacity(queued.len());
        wakers.extend(queued.drain(..).filter_map(|index| {
            let waiter = &mut waiters[index];
            waiter.is_queued = false;
            waiter.waker.take()
        }));
        wakers
    }
}
