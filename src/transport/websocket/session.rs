//! One connection, without its socket: what to write next, what a read means, when to wake.
//!
//! Bytes and times come in as arguments. [`connection`](super::connection) is the shell around it.

use std::{io::IoSlice, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Config,
    decoder::{Decoder, Message, Received, Rules},
    form::Messages,
    frame::{self, CloseCode},
    outgoing::Outgoing,
};
#[cfg(feature = "deflate")]
use crate::transport::websocket::deflate::{self, InflateError};
use crate::{
    error::{BoxError, Error},
    event::{Item, Payload},
    random,
    transport::{Encoder, End},
};

#[derive(Debug)]
pub(super) struct Session {
    config: Arc<Config>,
    messages: Messages,
    decoder: Decoder,
    outgoing: Outgoing,
    phase: Phase,
    /// How long the client may be silent before it is pinged.
    ping_after: Option<Duration>,
    /// When the client was last heard of.
    heard: Instant,
    /// When it was asked for a sign of life that has not come.
    pinged: Option<Instant>,
    /// Since when a message of the client's is under way.
    begun: Option<Instant>,
    /// Since when a write makes no progress.
    stalled: Option<Instant>,
    unasked: Unasked,
    /// Whether nothing is read, because nobody takes the client's messages.
    pub(super) is_deaf: bool,
}

/// Each is left for the next; none is entered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// Our close frame is on its way, and the client's is waited for.
    Closing {
        since: Instant,
    },
    /// No frame is read any more. Once all is written the socket is shut down, and then the client hangs up.
    Leaving {
        since: Instant,
    },
    Over,
}

/// Frames that nobody asked for, within a second: pings, pongs, messages that are dropped.
#[derive(Debug)]
struct Unasked {
    since: Instant,
    frames: u32,
}

/// More frames in a second than this that nobody asked for are a flood.
const FLOOD: u32 = 1000;

/// What is gathered for one write.
const WRITE: usize = 64 * 1024;

impl Session {
    pub(super) fn new(config: Arc<Config>, messages: Messages, now: Instant) -> Self {
        let rules = Rules {
            message: config.max_message,
            #[cfg(feature = "deflate")]
            allows_compressed: messages.deflate.is_some(),
            #[cfg(not(feature = "deflate"))]
            allows_compressed: false,
        };
        Self {
            messages,
            decoder: Decoder::new(rules),
            outgoing: Outgoing::default(),
            phase: Phase::Open,
            ping_after: config.ping.draw(),
            heard: now,
            pinged: None,
            begun: None,
            stalled: None,
            unasked: Unasked {
                since: now,
                frames: 0,
            },
            is_deaf: false,
            config,
        }
    }

    /// The socket is there.
    pub(super) fn begin(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Whether messages are still to be sent and taken.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether there is nothing more to do.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether the socket is to be shut down once all is written.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    // What comes in.

    /// Takes from the front of what was read, up to the end of a message that is wanted.
    pub(super) fn receive(
        &mut self,
        input: &mut &[u8],
        is_wanted: bool,
        now: Instant,
    ) -> Option<Payload> {
        self.heard = now;
        self.pinged = None;
        let message = self.decode(input, is_wanted, now);
        self.begun = match self.decoder.is_idle() {
            true => None,
            false => self.begun.or(Some(now)),
        };
        message
    }

    fn decode(&mut self, input: &mut &[u8], is_wanted: bool, now: Instant) -> Option<Payload> {
        while matches!(self.phase, Phase::Open | Phase::Closing { .. }) {
            let is_wanted = is_wanted && self.is_open();
            match self.decoder.decode(input, is_wanted) {
                Ok(None) => return None,
                Ok(Some(Received::Message(message))) => match self.payload(message) {
                    Ok(payload) => return Some(payload),
                    Err((code, reason)) => self.fail(code, reason, now),
                },
                Ok(Some(Received::Ping(payload))) => {
                    if self.is_open() {
                        self.outgoing.pong(&payload);
                    }
                    self.count_unasked(now);
                }
                Ok(Some(Received::Pong | Received::Dropped)) => self.count_unasked(now),
                Ok(Some(Received::Close(code))) => self.answer_close(code, now),
                Err(violation) => self.fail(violation.code, violation.reason, now),
            }
        }
        *input = &[];
        None
    }

    /// The client will send nothing more.
    pub(super) fn hung_up(&mut self) {
        self.phase = Phase::Over;
    }

    fn payload(&self, message: Message) -> Result<Payload, (CloseCode, &'static str)> {
        let (is_text, compressed) = match message {
            Message::Text(text) => return Ok(Payload::Text(text)),
            Message::Binary(bytes) => return Ok(Payload::Binary(bytes.into())),
            Message::Compressed { is_text, payload } => (is_text, payload),
        };
        let bytes = inflated(&compressed, self.config.max_message)?;
        if !is_text {
            return Ok(Payload::Binary(bytes.into()));
        }
        let text = String::from_utf8(bytes);
        text.map(Payload::Text)
            .map_err(|_| (CloseCode::INVALID_DATA, "text is not UTF-8"))
    }

    fn count_unasked(&mut self, now: Instant) {
        if now.duration_since(self.unasked.since) >= Duration::from_secs(1) {
            self.unasked = Unasked {
                since: now,
                frames: 0,
            };
        }
        self.unasked.frames += 1;
        if self.unasked.frames > FLOOD {
            self.fail(CloseCode::POLICY, "too many frames", now);
        }
    }

    fn answer_close(&mut self, code: Option<CloseCode>, now: Instant) {
        if self.is_open() {
            // It reads no more messages.
            self.outgoing.forget_data();
            frame::encode_close(code, "", self.outgoing.batch().buffer());
        }
        self.phase = Phase::Leaving { since: now };
    }

    // What goes out.

    /// Whether the next item has a place.
    pub(super) fn has_room(&self) -> bool {
        self.is_open() && self.outgoing.len() < WRITE
    }

    /// What the source says; `None` is its end.
    pub(super) fn send(&mut self, item: Option<Result<Item, BoxError>>, now: impl Fn() -> Instant) {
        let batch = self.outgoing.batch();
        let written = match item {
            Some(Ok(Item::Event(event))) => self.messages.event(&event, batch),
            Some(Ok(Item::Gap(gap))) => self.messages.gap(&gap, batch),
            Some(Ok(Item::Cursor(id))) => {
                self.messages.cursor(&id, batch);
                Ok(())
            }
            end @ (None | Some(Ok(Item::Finished))) => {
                let finished = end.is_some();
                self.messages.end(End { finished }, batch);
                let code = if finished {
                    CloseCode::NORMAL
                } else {
                    CloseCode::COME_BACK
                };
                return self.close(code, "", now());
            }
            Some(Err(error)) => {
                let is_lagged = error.downcast_ref().is_some_and(Error::is_lagged);
                let (code, reason) = if is_lagged {
                    (CloseCode::SLOW, "too slow")
                } else {
                    (CloseCode::ERROR, "the source failed")
                };
                return self.close(code, reason, now());
            }
        };
        if let Err(error) = written {
            let (code, reason) = if error.is_gap_unsupported() {
                (CloseCode::GAP, "events were missed")
            } else {
                (CloseCode::ERROR, "an event cannot be sent")
            };
            self.close(code, reason, now());
        }
    }

    /// Ends the connection politely, behind what is written already.
    pub(super) fn close(&mut self, code: CloseCode, reason: &str, now: Instant) {
        if self.is_open() {
            frame::encode_close(Some(code), reason, self.outgoing.batch().buffer());
            self.phase = Phase::Closing { since: now };
        }
    }

    /// Ends it because of what the client did: what it sends from now on is not looked at.
    fn fail(&mut self, code: CloseCode, reason: &str, now: Instant) {
        if self.is_open() {
            self.outgoing.forget_data();
        }
        self.close(code, reason, now);
        self.phase = Phase::Leaving { since: now };
    }

    /// What is to be written, and into how many slices it went; 0 is nothing.
    pub(super) fn slices<'a>(&'a mut self, into: &mut [IoSlice<'a>]) -> usize {
        self.outgoing.slices(into)
    }

    /// So many bytes of it are written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.outgoing.wrote(bytes);
        self.stalled = None;
    }

    /// All is written.
    pub(super) fn flows(&mut self) {
        self.stalled = None;
    }

    /// The socket takes nothing more for now.
    pub(super) fn stall(&mut self, now: impl FnOnce() -> Instant) {
        self.stalled.get_or_insert_with(now);
    }

    // Time.

    /// When [`expire`](Self::expire) is to be called next, if nothing happens before.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let config = &self.config;
        let stalled = self.stalled.map(|since| since + config.write_deadline);
        let others = match self.phase {
            Phase::Open if self.is_deaf => [None, None],
            Phase::Open => [
                self.begun.map(|since| since + config.message_deadline),
                match self.pinged {
                    Some(since) => Some(since + config.pong_deadline),
                    None => self.ping_after.map(|after| self.heard + after),
                },
            ],
            Phase::Closing { since } | Phase::Leaving { since } => {
                [Some(since + config.close_deadline), None]
            }
            Phase::Over => [None, None],
        };
        others.into_iter().chain([stalled]).flatten().min()
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, now: Instant) {
        let config = &self.config;
        let is_due = |since: Instant, deadline| since + deadline <= now;
        let was_due = |since: Option<Instant>, deadline| since.is_some_and(|s| is_due(s, deadline));
        if was_due(self.stalled, config.write_deadline) {
            self.phase = Phase::Over;
        }
        match self.phase {
            Phase::Open if self.is_deaf => {}
            Phase::Open if was_due(self.begun, config.message_deadline) => {
                self.fail(CloseCode::POLICY, "message takes too long", now);
            }
            Phase::Open if was_due(self.pinged, config.pong_deadline) => {
                self.fail(CloseCode::NO_PONG, "no pong", now);
            }
            Phase::Open => {
                let is_silent = |after| is_due(self.heard, after);
                if self.pinged.is_none() && self.ping_after.is_some_and(is_silent) {
                    self.outgoing.ping(random::bits());
                    self.pinged = Some(now);
                }
            }
            Phase::Closing { since } | Phase::Leaving { since } => {
                if is_due(since, config.close_deadline) {
                    self.phase = Phase::Over;
                }
            }
            Phase::Over => {}
        }
    }

    /// The client's messages are taken again.
    pub(super) fn listens(&mut self, now: impl FnOnce() -> Instant) {
        if std::mem::take(&mut self.is_deaf) {
            let now = now();
            self.heard = now;
            self.pinged = None;
            self.begun = self.begun.and(Some(now));
        }
    }
}

#[cfg(feature = "deflate")]
fn inflated(compressed: &[u8], limit: usize) -> Result<Vec<u8>, (CloseCode, &'static str)> {
    deflate::inflate(compressed, limit).map_err(|error| match error {
        InflateError::TooBig => (CloseCode::TOO_BIG, "message is too big"),
        InflateError::Invalid => (CloseCode::INVALID_DATA, "not compressed as agreed"),
    })
}

/// The decoder refuses what was not agreed on.
#[cfg(not(feature = "deflate"))]
fn inflated(_: &[u8], _: usize) -> Result<Vec<u8>, (CloseCode, &'static str)> {
    Err((CloseCode::PROTOCOL, "compression was not agreed on"))
}
