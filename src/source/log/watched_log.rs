use std::task::Waker;

use super::{LogIds, ReplayLog};
use crate::sync::{StoreWakerOutcome, WaiterKey};

/// A log whose readers in one event loop are woken together.
///
/// A reader of the log that has [delegated its wakeups](super::LogReader::delegate_wakeups) to an event loop stores no waker.
pub(crate) trait WatchedLog: Send + Sync {
    /// Returns a number that changes whenever the readers of the log must be polled: the log has a new event, or its streams end.
    fn status(&self) -> u64;

    /// Adds a task that waits for a change of the status.
    fn register_waiter(&self) -> WaiterKey;

    /// Removes a task.
    fn deregister_waiter(&self, waiter: &WaiterKey);

    /// Stores the waker of a registered task, which is woken by the next change of the status. Stores nothing if the status is not `status` any more.
    fn store_waker_unless_changed(
        &self,
        waiter: &WaiterKey,
        waker: &Waker,
        status: u64,
    ) -> StoreWakerOutcome;
}

impl<I: LogIds + Send + Sync> WatchedLog for ReplayLog<I> {
    fn status(&self) -> u64 {
        self.shared_log().status()
    }

    fn register_waiter(&self) -> WaiterKey {
        self.shared_log().register_reader(0)
    }

    fn deregister_waiter(&self, waiter: &WaiterKey) {
        self.shared_log().deregister_reader(waiter);
    }

    fn store_waker_unless_changed(
        &self,
        waiter: &WaiterKey,
        waker: &Waker,
        status: u64,
    ) -> StoreWakerOutcome {
        self.shared_log()
            .store_waker_unless_changed(waiter, waker, status)
    }
}
