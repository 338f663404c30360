//! The reactions of a subscriber to the end or the failure of a connection.

use std::time::{Duration, Instant};

use http::StatusCode;
use tower_push_proto::EventId;
#[cfg(feature = "websocket")]
use tower_push_proto::{StreamEnd, event::CloseFrame, websocket::DecodeError};

#[cfg(feature = "websocket")]
use super::{ConnectionReader, EventConnection};
use super::{
    MIN_EMPTY_POLL, STABLE_AFTER, Subscriber, SubscriberState, item_reader::ItemReader,
    transport_selector::NextTransport,
};
use crate::{error::Error, item::ClientItem, transport::Transport};

/// A connection that has failed or ended, and what the client does about it.
#[derive(Debug)]
pub(super) struct ConnectionFailure {
    /// `None` if the server has ended the connection as planned.
    pub(super) error: Option<Error>,
    pub(super) reaction: FailureReaction,
}

/// The longest time for the closing handshake of a WebSocket, 3 s.
#[cfg(feature = "websocket")]
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The reaction of the client to a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureReaction {
    /// End the subscription with the error: every further request would fail in the same way.
    Stop,
    /// Send another request after a delay.
    Retry,
    /// Send the same request once more at once, with fresh credentials. Stop if the repeated request fails in the same way.
    RetryOnceAtOnce,
    /// Try the next transport at once, because the server does not offer this one. Stop if the server offers none.
    NextTransport,
    /// Try the next transport at once, because nothing arrives over this one. If all transports were tried, retry after a delay.
    NextTransportAfterSilence,
}

impl ConnectionFailure {
    pub(super) fn stop(error: Error) -> Self {
        let (error, reaction) = (Some(error), FailureReaction::Stop);
        Self { error, reaction }
    }

    pub(super) fn retry(error: Error) -> Self {
        let (error, reaction) = (Some(error), FailureReaction::Retry);
        Self { error, reaction }
    }

    pub(super) fn next_transport_after_silence(error: Error) -> Self {
        let (error, reaction) = (Some(error), FailureReaction::NextTransportAfterSilence);
        Self { error, reaction }
    }

    fn planned_end() -> Self {
        let (error, reaction) = (None, FailureReaction::Retry);
        Self { error, reaction }
    }
}

/// Returns what the client does about a response with this status, which is not a feed. `docs/clients.md` has the table.
pub(super) fn reaction_to_status(status: StatusCode) -> FailureReaction {
    match status.as_u16() {
        401 => FailureReaction::RetryOnceAtOnce,
        // The server does not offer this transport, or a proxy does not let it through.
        400 | 405 | 406 | 415 | 426 | 501 | 505 => FailureReaction::NextTransport,
        // A conflict may pass. Another connection may reach the right server.
        408 | 409 | 421 | 425 | 429 | 500..=599 => FailureReaction::Retry,
        _ => FailureReaction::Stop,
    }
}

impl Subscriber {
    /// Drops the connection, and does what `failure` says.
    pub(super) fn fail(&mut self, failure: ConnectionFailure, now: Instant) {
        let ConnectionFailure { error, reaction } = failure;
        let has_worked = self.end_connection(now);
        let delay = match reaction {
            _ if !self.config.reconnects => return self.stop(error),
            FailureReaction::Stop => return self.stop(error),
            FailureReaction::RetryOnceAtOnce => {
                if std::mem::replace(&mut self.has_repeated_401, true) {
                    return self.stop(error);
                }
                Duration::ZERO
            }
            FailureReaction::NextTransport => match self.selector.on_unsuitable() {
                NextTransport::AtOnce => Duration::ZERO,
                NextTransport::AfterDelay => self.draw_delay(),
                NextTransport::None => return self.stop(error),
            },
            FailureReaction::NextTransportAfterSilence => match self.selector.on_silence() {
                NextTransport::AtOnce => Duration::ZERO,
                NextTransport::AfterDelay | NextTransport::None => self.draw_delay(),
            },
            FailureReaction::Retry => {
                let is_of_transport = |error: &Error| !error.is_connect() && !error.is_prepare();
                if !has_worked && error.as_ref().is_none_or(is_of_transport) {
                    self.selector.on_failure(now);
                }
                self.draw_delay()
            }
        };
        self.state = SubscriberState::Waiting { until: now + delay };
        self.announced = None;
        let item = ClientItem::Reconnecting { delay, error };
        self.queued.push_back(Ok(item));
    }

    /// Forgets the connection. Returns whether the server has shown that it is there: it has sent a byte of a feed, or a response that is
    /// no feed. A connection that was stable or has brought new events begins the backoff anew.
    fn end_connection(&mut self, now: Instant) -> bool {
        let has_worked = match &self.state {
            SubscriberState::Reading(connection) => {
                let lasted = now.saturating_duration_since(connection.since);
                self.has_repeated_401 &= lasted < STABLE_AFTER;
                if connection.has_input {
                    self.selector.on_success(now);
                    if lasted >= STABLE_AFTER || connection.has_new_items(self.cursor.as_ref()) {
                        self.backoff.reset();
                    }
                }
                let hint = connection.reader.body_reader().and_then(ItemReader::retry);
                self.lasting_retry_hint = hint.or(self.lasting_retry_hint);
                connection.has_input
            }
            SubscriberState::Requesting { .. } => false,
            _ => true,
        };
        self.input = bytes::Bytes::new();
        self.end = None;
        self.redirected_url = None;
        self.redirects = 0;
        has_worked
    }

    fn draw_delay(&mut self) -> Duration {
        let hint = self.retry_hint.take().or(self.lasting_retry_hint);
        self.backoff.next_delay(hint)
    }

    /// Ends the subscription with an error. If there is no error, the server has ended the response, and the client does not reconnect.
    fn stop(&mut self, error: Option<Error>) {
        self.terminate();
        self.queued.extend(error.map(Err));
    }

    /// Handles the end of the body or the socket after all items before the end were returned.
    pub(super) fn handle_connection_end(&mut self, now: Instant) {
        let (end, SubscriberState::Reading(connection)) = (self.end.take(), &mut self.state) else {
            return;
        };
        if let Some(Err(error)) = end {
            return self.fail(ConnectionFailure::retry(Error::cut_by(error)), now);
        }
        if connection.reader.body_reader().is_none() {
            let error = Error::cut("the WebSocket ended without a close frame");
            return self.fail(ConnectionFailure::retry(error), now);
        }
        if !connection.requested.is_long_poll() {
            return self.fail(ConnectionFailure::planned_end(), now);
        }
        let cursor = connection.batch_cursor.take();
        let is_finished = |cursor: &EventId| cursor.is_finished();
        let is_last = connection.is_last_batch || cursor.as_ref().is_some_and(is_finished);
        if let Some(cursor) = cursor.filter(|cursor| !cursor.is_finished()) {
            let is_unmoved = self.cursor.as_ref() == Some(&cursor);
            let is_durable = connection.requested == Transport::DurableLongPoll;
            if is_unmoved && is_durable && connection.has_items && !is_last {
                let detail = "the offset after a batch with messages is the one before it";
                return self.fail(ConnectionFailure::stop(Error::malformed(detail)), now);
            }
            if !is_unmoved {
                self.cursor = Some(cursor.clone());
                self.queued.push_back(Ok(ClientItem::Cursor(cursor)));
            }
        }
        if is_last {
            self.terminate();
            return self.queued.push_back(Ok(ClientItem::Finished));
        }
        self.end_poll(now);
    }

    /// Continues after a complete response to a long poll: with the next poll at once, unless the server asks for a delay or answers without
    /// waiting for events.
    fn end_poll(&mut self, now: Instant) {
        let SubscriberState::Reading(connection) = &self.state else {
            return;
        };
        let has_new_items = connection.has_new_items(self.cursor.as_ref());
        let took = now.saturating_duration_since(connection.since);
        if self.retry_hint.is_some() {
            return self.fail(ConnectionFailure::planned_end(), now);
        }
        if !has_new_items && took < MIN_EMPTY_POLL {
            return self.fail(ConnectionFailure::retry(Error::no_new_events()), now);
        }
        self.end_connection(now);
        self.selector.on_success(now);
        self.state = SubscriberState::Waiting { until: now };
    }
}

#[cfg(feature = "websocket")]
impl Error {
    pub(super) fn from_websocket(error: DecodeError) -> Self {
        match error.close_code.get() {
            1009 => Self::too_long(error),
            _ => Self::malformed(error),
        }
    }
}

#[cfg(feature = "websocket")]
impl Subscriber {
    /// Handles the server's close frame. The close code says whether the client comes back.
    pub(super) fn handle_close_frame(&mut self, frame: CloseFrame, now: Instant) {
        if let Ok(StreamEnd {
            retry: Some(retry), ..
        }) = StreamEnd::from_json(frame.reason().as_bytes())
        {
            self.retry_hint = Some(retry);
        }
        let code = frame.code().map(|code| code.get());
        let failure = match code {
            Some(1000) => {
                self.queued.push_back(Ok(ClientItem::Finished));
                return self.close_websocket(&frame, None, now);
            }
            // The stream has ended as planned.
            Some(1001 | 1012 | 3000..=3005) => ConnectionFailure::planned_end(),
            _ => ConnectionFailure {
                error: Some(Error::closed(frame)),
                reaction: reaction_to_close_code(code),
            },
        };
        self.begin_close(failure, now);
    }

    /// Waits until the server has ended the connection, and then does what `failure` says. The output has a close frame already.
    pub(super) fn begin_close(&mut self, failure: ConnectionFailure, now: Instant) {
        self.close_websocket(&CloseFrame::without_code(), Some(failure), now);
    }

    /// Sends a close frame, unless one was sent, and awaits the end of the connection. Without a WebSocket, ends the subscription at once.
    pub(super) fn close_websocket(
        &mut self,
        frame: &CloseFrame,
        failure: Option<ConnectionFailure>,
        now: Instant,
    ) {
        let state = std::mem::replace(&mut self.state, SubscriberState::Terminated);
        let mut websocket = match state {
            SubscriberState::Reading(EventConnection {
                reader: ConnectionReader::WebSocket(websocket),
                ..
            }) => websocket,
            SubscriberState::Closing { websocket, .. } => websocket,
            _ => return self.terminate(),
        };
        self.selector.on_success(now);
        websocket.close(frame);
        self.input = bytes::Bytes::new();
        let failure = failure.map(Box::new);
        if self.end.take().is_some() {
            return self.apply_close(failure, now);
        }
        self.state = SubscriberState::Closing {
            websocket,
            failure,
            deadline: now + CLOSE_TIMEOUT,
        };
    }

    /// Sends the close frame that names the broken rule. The subscription ends with the error.
    pub(super) fn close_after_violation(&mut self) {
        if let Some((error, time)) = self.violation.take() {
            let frame = CloseFrame::new(error.close_code, error.reason);
            let failure = ConnectionFailure::stop(Error::from_websocket(error));
            self.close_websocket(&frame, Some(failure), time);
        }
    }

    /// Does what was decided at the beginning of the closing handshake.
    pub(super) fn apply_close(&mut self, failure: Option<Box<ConnectionFailure>>, now: Instant) {
        match failure {
            Some(failure) => self.fail(*failure, now),
            None => self.terminate(),
        }
    }
}

/// Returns what the client does after a close frame with this code.
#[cfg(feature = "websocket")]
fn reaction_to_close_code(code: Option<u16>) -> FailureReaction {
    match code {
        // The code says that the client broke the protocol or a rule.
        Some(1002 | 1003 | 1007..=1010 | 3500..=3999) => FailureReaction::Stop,
        // A tower-push server that refuses a WebSocket late closes it with 4000 + status. It has accepted the transport.
        Some(code @ 4400..=4599) => match StatusCode::from_u16(code - 4000).map(reaction_to_status)
        {
            Ok(FailureReaction::NextTransport) | Err(_) => FailureReaction::Stop,
            Ok(reaction) => reaction,
        },
        _ => FailureReaction::Retry,
    }
}
