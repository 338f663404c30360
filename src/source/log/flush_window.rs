use std::{sync::Weak, time::Duration};

use tokio::time::Instant;

use super::flush_timer::{ArmTimerOutcome, FlushTimer};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// Decides when a log wakes its readers for new events, so that many publications cause few writes.
///
/// If there is no window, an event is flushed at once, and a window begins. The log holds back the events of the window until the window ends, and
/// then flushes them together, which begins the next window. If the window ends and no event is held back, no new window
/// begins.
///
/// # Invariant: no event is held back longer than its window
/// A flush sets the end of the window before it changes what readers see, and wakes the waiting readers after that. So a reader that waits has seen
/// the last flush, and has [set a timer](Self::ensure_timer) for the end of its window. The readers share the timer. While no reader
/// waits, the window needs no timer: the next reader that waits sets the timer, even if the window is over.
pub(crate) struct FlushWindow {
    length: Duration,
    max_held_events: HeldEvents,
    state: Mutex<WindowState>,
    /// The number of the current window; 0 before the first. Changed while `state` is locked.
    number: AtomicU64,
    timer: FlushTimer,
}

/// A log that wakes its readers at the end of a [`FlushWindow`].
pub(crate) trait FlushTarget: Send + Sync {
    /// Flushes the events that are held back, if there are any.
    fn flush_held(&self);
}

/// The number and the bytes of events that a log holds back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeldEvents {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
struct WindowState {
    /// The end of the current window. `None` if there is no window, so that the next event is flushed at once.
    ends_at: Option<Instant>,
    /// The events since the last flush.
    held: HeldEvents,
}

/// The longest window: 10 s.
const MAX_LENGTH: Duration = Duration::from_secs(10);

impl FlushWindow {
    /// Creates a window of this length. Returns `None` if the length is zero.
    ///
    /// The events that are held back are flushed before the end of the window when they reach `max_held_events`. `target` is the log to flush when the
    /// timer ends.
    pub(crate) fn new(
        length: Duration,
        max_held_events: HeldEvents,
        target: Weak<dyn FlushTarget>,
    ) -> Option<Self> {
        (!length.is_zero()).then(|| Self {
            length: length.min(MAX_LENGTH),
            max_held_events,
            state: Mutex::new(WindowState {
                ends_at: None,
                held: HeldEvents::default(),
            }),
            number: AtomicU64::new(0),
            timer: FlushTimer::new(target),
        })
    }

    /// Records that an event of `memory_len` bytes, see [`event_memory_len`](super::event_memory_len), was appended. Returns whether the caller must flush all events now.
    pub(crate) fn must_flush_after_append(&self, memory_len: usize, now: Instant) -> bool {
        let mut state = lock(&self.state);
        state.held.events += 1;
        state.held.bytes = state.held.bytes.saturating_add(memory_len);
        let is_full = state.held.events >= self.max_held_events.events
            || state.held.bytes >= self.max_held_events.bytes;
        let is_over = state.ends_at.is_none_or(|ends_at| ends_at <= now);
        let flushes = is_full || is_over;
        if flushes {
            self.begin(&mut state, now);
        }
        flushes
    }

    /// Records that the timer of the window has ended. Returns whether the log holds back events, which the caller must flush now. If the log
    /// holds back no event, no new window begins.
    ///
    /// The end of the window is not compared with `now`, because a runtime that shuts down ends its timers early.
    pub(crate) fn must_flush_at_timer_end(&self, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let flushes = state.held.events > 0;
        state.ends_at = None;
        if flushes {
            self.begin(&mut state, now);
        }
        flushes
    }

    /// Records that the caller flushes all events, for a reason of its own.
    pub(crate) fn on_flush(&self, now: Instant) {
        self.begin(&mut lock(&self.state), now);
    }

    fn begin(&self, state: &mut WindowState, now: Instant) {
        state.held = HeldEvents::default();
        state.ends_at = Some(now + self.length);
        let number = self.number.load(Ordering::Relaxed);
        self.number.store(number + 1, Ordering::Release);
    }

    /// Ensures that a timer runs for the end of the current window. A reader that has stored its waker calls this method, without locks.
    ///
    /// Without a tokio runtime, no timer can run, and the window ends at once.
    pub(crate) fn ensure_timer(&self) {
        let number = self.number.load(Ordering::Acquire);
        if number == 0 || self.timer.is_armed_for(number) {
            return;
        }
        let Some(ends_at) = lock(&self.state).ends_at else {
            return;
        };
        match self.timer.arm(number, ends_at) {
            ArmTimerOutcome::Running => {}
            ArmTimerOutcome::Elapsed => self.timer.flush_target(),
            ArmTimerOutcome::NoRuntime => {
                lock(&self.state).ends_at = None;
                self.timer.flush_target();
            }
        }
    }
}

impl std::fmt::Debug for FlushWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlushWindow")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct NoTarget;

    impl FlushTarget for NoTarget {
        fn flush_held(&self) {}
    }

    const LENGTH: Duration = Duration::from_millis(10);

    fn window(max_events: usize, max_bytes: usize) -> FlushWindow {
        let target = Arc::downgrade(&Arc::new(NoTarget));
        let max_held_events = HeldEvents {
            events: max_events,
            bytes: max_bytes,
        };
        FlushWindow::new(LENGTH, max_held_events, target).unwrap()
    }

    #[test]
    fn first_event_is_flushed_and_later_ones_wait() {
        let window = window(100, 100);
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert!(window.must_flush_after_append(1, at(0)));
        assert!(!window.must_flush_after_append(1, at(9)));
        assert!(window.must_flush_at_timer_end(at(10)));
        // The next window has no event, so the event after it is flushed at once.
        assert!(!window.must_flush_after_append(1, at(19)));
        assert!(window.must_flush_at_timer_end(at(20)));
        assert!(!window.must_flush_at_timer_end(at(30)));
        assert!(window.must_flush_after_append(1, at(31)));
    }

    #[test]
    fn late_timer_does_not_delay_the_next_event() {
        let window = window(100, 100);
        let start = Instant::now();
        assert!(window.must_flush_after_append(1, start));
        assert!(!window.must_flush_after_append(1, start));
        assert!(window.must_flush_after_append(1, start + LENGTH));
        assert!(!window.must_flush_at_timer_end(start + LENGTH));
    }

    #[test]
    fn held_events_are_bounded() {
        let now = Instant::now();
        let by_number = window(3, 1000);
        assert!(by_number.must_flush_after_append(1, now));
        let flushes = [(); 6].map(|()| by_number.must_flush_after_append(1, now));
        assert_eq!(flushes, [false, false, true, false, false, true]);
        let by_bytes = window(1000, 10);
        assert!(by_bytes.must_flush_after_append(1, now));
        let flushes = [9, 1, 10, 1].map(|len| by_bytes.must_flush_after_append(len, now));
        assert_eq!(flushes, [false, true, true, false]);
    }

    #[test]
    fn zero_length_is_no_window() {
        let target = Arc::downgrade(&Arc::new(NoTarget));
        let max_held_events = HeldEvents::default();
        assert!(FlushWindow::new(Duration::ZERO, max_held_events, target.clone()).is_none());
        let longest = FlushWindow::new(Duration::MAX, max_held_events, target).unwrap();
        assert_eq!(longest.length, MAX_LENGTH);
    }
}
