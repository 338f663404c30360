//! What a channel's handles and its readers share.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
    time::Duration,
};

use super::{
    log::{Log, Next},
    taken::Taken,
};
use crate::{
    event::Event,
    sync::{AtomicU64, Ordering, RwLock, WaitList, WaiterKey, read, write},
};

#[derive(Debug)]
pub(super) struct Shared {
    log: RwLock<Log>,
    /// Twice the number of the last event, and one more once the log is closed: what readers look at before they take a lock,
    /// and before they wait.
    news: AtomicU64,
    pub(super) wait_list: WaitList,
}

impl Shared {
    pub(super) fn new(log: Log, shards: usize) -> Self {
        Self {
            log: RwLock::new(log),
            news: AtomicU64::new(0),
            wait_list: WaitList::new(shards),
        }
    }

    /// Writes the event that is made from its number, and wakes all readers; `None` once closed.
    pub(super) fn publish(
        &self,
        event: impl FnOnce(u64) -> Event,
        key: Option<Box<str>>,
        now: Duration,
    ) -> Option<u64> {
        let (number, dropped) = {
            let mut log = write(&self.log);
            if log.is_closed() {
                return None;
            }
            let number = log.next();
            log.push(event(number), key, now);
            self.news.store(2 * number, Ordering::Release);
            (number, log.take_dropped())
        };
        self.wait_list.wake_all();
        // If it panics, that is not the publisher's affair: the event is published.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(dropped)));
        Some(number)
    }

    pub(super) fn close(&self) {
        {
            let mut log = write(&self.log);
            log.close();
            self.news.store(2 * log.last() + 1, Ordering::Release);
        }
        self.wait_list.wake_all();
    }

    /// The log, as it is now.
    pub(super) fn look<T>(&self, now: Duration, at: impl FnOnce(&Log) -> T) -> T {
        let log = read(&self.log);
        if !log.is_due(now) {
            return at(&log);
        }
        drop(log);
        let mut log = write(&self.log);
        log.expire(now);
        let seen = at(&log);
        let dropped = log.take_dropped();
        drop(log);
        drop(dropped);
        seen
    }

    /// Whether nothing comes after this number any more.
    pub(super) fn is_over(&self, at: u64) -> bool {
        self.news.load(Ordering::Acquire) == 2 * at + 1
    }

    /// See [`Log::read`].
    pub(super) fn read(&self, at: u64, bytes: usize, into: &mut Taken) -> Next {
        if self.is_nothing(at) {
            return Next::Nothing;
        }
        read(&self.log).read(at, bytes, into)
    }

    /// Waits for what comes after this number; false if it is there already.
    pub(super) fn wait(&self, place: &WaiterKey, waker: &Waker, at: u64) -> bool {
        self.wait_list
            .wait_unless(place, waker, || !self.is_nothing(at))
    }

    fn is_nothing(&self, at: u64) -> bool {
        self.news.load(Ordering::Acquire) == 2 * at
    }
}
