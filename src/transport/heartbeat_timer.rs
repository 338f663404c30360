use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::KeepAlive;
use crate::moving_deadline_timer::MovingDeadlineTimer;

pin_project! {
    /// Decides when an idle stream sends its next heartbeat.
    pub(super) struct HeartbeatTimer {
        // `None` if the stream sends no heartbeats.
        interval: Option<Duration>,
        // The time at which the stream became idle. `None` from a write until the next idle poll.
        idle_since: Option<Instant>,
        #[pin]
        timer: MovingDeadlineTimer,
    }
}

impl HeartbeatTimer {
    pub(super) fn new(keep_alive: KeepAlive) -> Self {
        Self {
            interval: keep_alive.draw_interval(),
            idle_since: None,
            timer: MovingDeadlineTimer::default(),
        }
    }

    /// Records a write: the next interval begins when the idle stream is next polled.
    pub(super) fn on_write(self: Pin<&mut Self>) {
        *self.project().idle_since = None;
    }

    /// Returns the time without output after which a heartbeat is due.
    #[cfg(feature = "server")]
    pub(super) fn interval(self: Pin<&mut Self>) -> Option<Duration> {
        self.interval
    }

    /// Turns heartbeats off for the rest of the stream.
    pub(super) fn disable(self: Pin<&mut Self>) {
        *self.project().interval = None;
    }

    /// Polls the timer of an idle stream. The poll is ready when a heartbeat is due.
    pub(super) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let Some(interval) = *this.interval else {
            return Poll::Pending;
        };
        let due_at = *this.idle_since.get_or_insert_with(Instant::now) + interval;
        this.timer.poll(due_at, cx)
    }
}
