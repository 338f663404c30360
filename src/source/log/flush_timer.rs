use std::sync::{Arc, Weak};
#[cfg(not(all(test, tower_push_loom)))]
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Wake, Waker},
};

use tokio::time::Instant;
#[cfg(not(all(test, tower_push_loom)))]
use tokio::{
    runtime::Handle,
    task::unconstrained,
    time::{Sleep, sleep_until},
};

use super::flush_window::FlushTarget;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// The timer for the end of a [`FlushWindow`](super::FlushWindow).
///
/// When the timer ends, tokio's timer driver flushes the log itself. So a flush does not depend on a reader that may be slow, or gone.
pub(super) struct FlushTimer {
    /// The number of the last window for which the timer was set.
    armed_number: AtomicU64,
    /// Locked while the timer is set, and never while the log is flushed.
    sleep: Mutex<Option<RunningTimer>>,
    waker: Arc<FlushOnWake>,
}

/// The result of [`FlushTimer::arm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArmTimerOutcome {
    /// The timer runs.
    Running,
    /// The time is over: the caller flushes the log.
    Elapsed,
    /// There is no tokio runtime in which the timer could run.
    NoRuntime,
}

/// The waker of the timer. To wake it flushes the log.
struct FlushOnWake {
    target: Weak<dyn FlushTarget>,
}

#[cfg(not(all(test, tower_push_loom)))]
type RunningTimer = Pin<Box<Sleep>>;

impl FlushTimer {
    pub(super) fn new(target: Weak<dyn FlushTarget>) -> Self {
        Self {
            armed_number: AtomicU64::new(0),
            sleep: Mutex::new(None),
            waker: Arc::new(FlushOnWake { target }),
        }
    }

    /// Returns whether the timer was set for this window or a later one.
    pub(super) fn is_armed_for(&self, window_number: u64) -> bool {
        self.armed_number.load(Ordering::Acquire) >= window_number
    }

    /// Sets the timer for the end of a window, unless another reader has done so.
    pub(super) fn arm(&self, window_number: u64, ends_at: Instant) -> ArmTimerOutcome {
        let mut running = lock(&self.sleep);
        if self.is_armed_for(window_number) {
            return ArmTimerOutcome::Running;
        }
        let Ok(started) = self.waker.start_timer(ends_at) else {
            return ArmTimerOutcome::NoRuntime;
        };
        let armed = match started {
            Some(_) => ArmTimerOutcome::Running,
            None => ArmTimerOutcome::Elapsed,
        };
        // The timer of the last window is dropped: the end of that window has passed, or a flush before the end has begun a new window.
        *running = started;
        self.armed_number.store(window_number, Ordering::Release);
        armed
    }

    /// Flushes the events that the log holds back.
    pub(super) fn flush_target(&self) {
        self.waker.flush_target();
    }
}

/// The error of [`FlushOnWake::start_timer`]: no tokio runtime is entered.
struct NoRuntime;

impl FlushOnWake {
    fn flush_target(&self) {
        if let Some(target) = self.target.upgrade() {
            target.flush_held();
        }
    }

    /// Starts a timer. Returns `None` if the time at which it should end has passed already.
    #[cfg(not(all(test, tower_push_loom)))]
    fn start_timer(self: &Arc<Self>, ends_at: Instant) -> Result<Option<RunningTimer>, NoRuntime> {
        if Handle::try_current().is_err() {
            return Err(NoRuntime);
        }
        let mut sleep = Box::pin(sleep_until(ends_at));
        let waker = Waker::from(self.clone());
        // Outside of tokio's cooperative budget, without which the timer would not be registered.
        let mut poll = std::pin::pin!(unconstrained(sleep.as_mut()));
        let is_over = poll
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready();
        Ok((!is_over).then_some(sleep))
    }
}

#[cfg(not(all(test, tower_push_loom)))]
impl Wake for FlushOnWake {
    fn wake(self: Arc<Self>) {
        self.flush_target();
    }
}

#[cfg(all(test, tower_push_loom))]
type RunningTimer = ();

#[cfg(all(test, tower_push_loom))]
impl FlushOnWake {
    /// Starts a thread that flushes the log at any later time, in place of a timer.
    fn start_timer(self: &Arc<Self>, _: Instant) -> Result<Option<RunningTimer>, NoRuntime> {
        let waker = self.clone();
        loom::thread::spawn(move || waker.flush_target());
        Ok(Some(()))
    }
}
