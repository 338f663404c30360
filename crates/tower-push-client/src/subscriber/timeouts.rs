//! The timeouts of a subscriber.

use std::time::{Duration, Instant};

use super::{EventConnection, Subscriber, SubscriberState, connection_failure::ConnectionFailure};
use crate::{error::Error, transport::Transport};

impl Subscriber {
    /// Returns when [`handle_timeout`](Self::handle_timeout) must be called. Returns `None` if no timer is needed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            SubscriberState::Waiting { until } => Some(*until),
            SubscriberState::Requesting {
                transport, sent, ..
            } => Some(*sent + self.response_timeout(*transport)),
            SubscriberState::ReadingError(pending) => Some(pending.deadline()),
            SubscriberState::Reading(connection) => {
                let first_byte = self.first_byte_deadline(connection);
                let body = match connection.requested {
                    transport if transport.is_long_poll() => {
                        Some(connection.since + self.config.poll_timeout)
                    }
                    _ => self.watchdog.deadline(),
                };
                [first_byte, body].into_iter().flatten().min()
            }
            #[cfg(feature = "websocket")]
            SubscriberState::Closing { deadline, .. } => Some(*deadline),
            SubscriberState::Terminated => None,
        }
    }

    fn response_timeout(&self, transport: Transport) -> Duration {
        match transport {
            _ if transport.is_long_poll() => self.config.poll_timeout,
            _ => self.config.response_timeout,
        }
    }

    /// Returns when a response without a byte counts as held back by a proxy. Returns `None` if there is no other transport to try.
    fn first_byte_deadline(&self, connection: &EventConnection) -> Option<Instant> {
        let is_body = connection.reader.body_reader().is_some();
        let may_be_held_back =
            is_body && !connection.has_input && self.selector.may_switch_transport();
        may_be_held_back.then(|| connection.since + self.config.first_byte_timeout)
    }

    /// Handles that the time of [`poll_timeout`](Self::poll_timeout) has come. Does nothing before this time.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        match &mut self.state {
            SubscriberState::Requesting { .. } => {
                let error = Error::timeout("the server did not respond in time");
                self.fail(ConnectionFailure::retry(error), now);
            }
            SubscriberState::ReadingError(_) => self.report_error_response(now),
            SubscriberState::Reading(connection) => {
                let is_held_back = !connection.has_input && self.selector.may_switch_transport();
                let error = Error::timeout("the server was silent for too long");
                let failure = match is_held_back {
                    true => ConnectionFailure::next_transport_after_silence(error),
                    false => ConnectionFailure::retry(error),
                };
                self.fail(failure, now);
            }
            #[cfg(feature = "websocket")]
            SubscriberState::Closing { failure, .. } => {
                let failure = failure.take();
                self.apply_close(failure, now);
            }
            SubscriberState::Waiting { .. } | SubscriberState::Terminated => {}
        }
    }
}
