use std::{sync::Arc, task::Context};

use tokio::time::Instant;

use super::{SharedServer, server_counts::increment};
use crate::{
    deadline::earlier,
    event_loop::{ConnectionPoll, DrivenConnection, TakenOutput},
    guard::DrainStartWaiter,
};

/// A connection that is closed at the deadline of the server's drain, if it is still open then.
pub(super) struct DrainDeadline<C> {
    connection: C,
    drain: DrainStartWaiter,
    has_drain_started: bool,
    server: Arc<SharedServer>,
}

impl<C: DrivenConnection> DrainDeadline<C> {
    pub(super) fn new(connection: C, drain: DrainStartWaiter, server: Arc<SharedServer>) -> Self {
        Self {
            connection,
            drain,
            has_drain_started: false,
            server,
        }
    }

    /// Registers for the start of the drain.
    fn poll_drain_start(&mut self, cx: &Context<'_>) {
        if !self.has_drain_started {
            self.has_drain_started = self.drain.poll_start(cx).is_ready();
        }
    }

    /// Returns when the connection must be closed; `None` before the drain starts.
    fn deadline(&self) -> Option<Instant> {
        match self.has_drain_started {
            true => self.drain.deadline(),
            false => None,
        }
    }

    fn is_close_due(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Closes the connection. Counts it, unless its client has got everything.
    fn cut(&mut self) -> ConnectionPoll {
        if !self.connection.is_lingering() {
            increment(&self.server.counters.cut_connections);
        }
        ConnectionPoll::Closed
    }

    /// Lets the connection wait until the deadline of the drain at the latest.
    fn with_deadline(&self, poll: ConnectionPoll) -> ConnectionPoll {
        match poll {
            ConnectionPoll::Pending { deadline } => ConnectionPoll::Pending {
                deadline: earlier(deadline, self.deadline()),
            },
            ConnectionPoll::Closed => ConnectionPoll::Closed,
        }
    }
}

impl<C: DrivenConnection> DrivenConnection for DrainDeadline<C> {
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> ConnectionPoll {
        self.poll_drain_start(cx);
        if self.is_close_due(now) {
            return self.cut();
        }
        let poll = self.connection.poll(cx, now);
        self.with_deadline(poll)
    }

    fn prefetch(&self) {
        self.connection.prefetch();
    }

    fn is_lingering(&mut self) -> bool {
        self.connection.is_lingering()
    }

    fn take_output(&mut self, cx: &mut Context<'_>, now: Instant) -> TakenOutput {
        match self.is_close_due(now) {
            true => TakenOutput::Nothing,
            false => self.connection.take_output(cx, now),
        }
    }

    fn write_output(
        &mut self,
        output: TakenOutput,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> ConnectionPoll {
        if self.is_close_due(now) {
            return self.cut();
        }
        let poll = self.connection.write_output(output, cx, now);
        self.with_deadline(poll)
    }
}
