//! The output of a subscriber over a WebSocket.

use std::time::Instant;

use bytes::{Buf, BytesMut};
use tower_push_proto::event::{CloseFrame, Payload};

use super::{
    ConnectionReader, EventConnection, Subscriber, SubscriberState, client_session::ClientSession,
};

/// The number of bytes of unwritten messages from which a subscriber takes no further message: 64 KiB.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// Methods for messages to the server.
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
impl Subscriber {
    /// Whether a message can be sent now: a WebSocket is open, and at most 64 KiB of messages wait to be written.
    pub fn wants_message(&self) -> bool {
        match &self.state {
            SubscriberState::Reading(EventConnection {
                reader: ConnectionReader::WebSocket(websocket),
                ..
            }) => websocket.output_len() < OUTPUT_LIMIT,
            _ => false,
        }
    }

    /// Whether a message may be sent now or later: one of the transports is a WebSocket, and the subscription has not ended.
    pub(crate) fn may_send_messages(&self) -> bool {
        let is_over = match &self.state {
            SubscriberState::Closing { failure, .. } => failure.is_none(),
            state => matches!(state, SubscriberState::Terminated),
        };
        !is_over && self.config.transports.iter().any(|t| t.is_websocket())
    }

    /// Whether the transport of the connection, or of the next request, is a WebSocket.
    pub(crate) fn uses_websocket(&self) -> bool {
        match &self.state {
            // A server can answer a request for a WebSocket with another transport.
            SubscriberState::Reading(connection) => connection.reader.body_reader().is_none(),
            _ => self.selector.current().is_websocket(),
        }
    }

    /// Sends a message to the server. The message is dropped unless a WebSocket is open.
    pub fn send(&mut self, message: &Payload) {
        if let SubscriberState::Reading(EventConnection {
            reader: ConnectionReader::WebSocket(websocket),
            ..
        }) = &mut self.state
        {
            websocket.write_message(message);
        }
    }

    /// Ends the subscription: with a closing handshake if a WebSocket is open.
    pub fn close(&mut self, frame: &CloseFrame, now: Instant) {
        self.close_websocket(frame, None, now);
    }

    /// Returns the bytes that are to be written to the upgraded socket. Call [`send`](Self::send) before, with the messages that wait.
    pub fn poll_transmit(&mut self) -> &[u8] {
        self.close_after_violation();
        match self.websocket() {
            Some(websocket) => websocket.output(),
            None => &[],
        }
    }

    /// Handles that the first `len` bytes of [`poll_transmit`](Self::poll_transmit) were written.
    pub fn handle_written(&mut self, len: usize) {
        if let Some(websocket) = self.websocket() {
            let output = websocket.output();
            output.advance(len.min(output.len()));
            if output.is_empty() {
                // An idle subscriber keeps no buffer.
                *output = BytesMut::new();
            }
        }
    }

    fn websocket(&mut self) -> Option<&mut ClientSession> {
        match &mut self.state {
            SubscriberState::Closing { websocket, .. } => Some(websocket),
            SubscriberState::Reading(EventConnection {
                reader: ConnectionReader::WebSocket(websocket),
                ..
            }) => Some(websocket),
            _ => None,
        }
    }
}
