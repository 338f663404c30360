//! One connection, without its socket: what to write next, what a read means, when to wake.
//!
//! Bytes and times come in as arguments.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

#[cfg(feature = "deflate")]
use super::deflate::{self, InflateError};
use super::{
    decoder::{Decoder, Message, Received, Rules},
    frame::{self, CloseCode, Role},
    message_format::FrameEncoder,
    outgoing::Outgoing,
};
use crate::{
    encoder::{Encoder, End},
    error::{BoxError, Error},
    event::{Item, Payload},
    random,
};

/// The limits and deadlines of a [`Session`].
#[derive(Clone, Debug)]
#[must_use]
pub struct SessionConfig {
    pong_deadline: Duration,
    message_deadline: Duration,
    write_deadline: Duration,
    close_deadline: Duration,
    max_message_size: usize,
}

/// Upper bound for deadlines, 30 days: adding it to an `Instant` does not overflow.
const MAX_DEADLINE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl SessionConfig {
    /// The defaults that stand at the setters. Deadlines are at most 30 days.
    pub fn new() -> Self {
        Self {
            pong_deadline: Duration::from_secs(20),
            message_deadline: Duration::from_secs(60),
            write_deadline: Duration::from_secs(30),
            close_deadline: Duration::from_secs(10),
            max_message_size: 64 * 1024,
        }
    }

    /// How long a client that was pinged may stay silent before the connection is closed: 20 s by default.
    pub fn pong_deadline(mut self, deadline: Duration) -> Self {
        self.pong_deadline = deadline.min(MAX_DEADLINE);
        self
    }

    /// How long a client may take for one message, from its first byte to its last: 60 s by default.
    pub fn message_deadline(mut self, deadline: Duration) -> Self {
        self.message_deadline = deadline.min(MAX_DEADLINE);
        self
    }

    /// How long a client may accept nothing of what is sent before it is disconnected: 30 s by default.
    pub fn write_deadline(mut self, deadline: Duration) -> Self {
        self.write_deadline = deadline.min(MAX_DEADLINE);
        self
    }

    /// How long a client may take to answer a close frame: 10 s by default.
    pub fn close_deadline(mut self, deadline: Duration) -> Self {
        self.close_deadline = deadline.min(MAX_DEADLINE);
        self
    }

    /// The longest message that a client may send, in bytes, compressed or not: 64 KiB by default.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// One WebSocket connection, without its socket.
#[derive(Debug)]
pub struct Session {
    config: Arc<SessionConfig>,
    messages: FrameEncoder,
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
    /// What to close with, as the client has closed or offended, once the messages before that are answered.
    parting: Option<(Option<CloseCode>, &'static str)>,
    /// Whether nothing is read, because nobody takes the client's messages.
    is_deaf: bool,
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

/// A write that waited for less says nothing of the client: in HTTP/2 it may have waited for a task of the server's.
const LULL: Duration = Duration::from_secs(1);

/// What is gathered for one write.
const WRITE: usize = 64 * 1024;

impl Session {
    /// Makes the session of a connection that is about to be upgraded. A client that is silent for `ping_after` is pinged.
    pub fn new(
        config: Arc<SessionConfig>,
        messages: FrameEncoder,
        ping_after: Option<Duration>,
        now: Instant,
    ) -> Self {
        let rules = Rules {
            role: Role::Server,
            message: config.max_message_size,
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
            ping_after,
            heard: now,
            pinged: None,
            begun: None,
            stalled: None,
            unasked: Unasked {
                since: now,
                frames: 0,
            },
            parting: None,
            is_deaf: false,
            config,
        }
    }

    /// When the socket is to be there at the latest: that is how long the response may take.
    pub fn begins_by(&self) -> Instant {
        self.heard + self.config.write_deadline
    }

    /// The socket is there.
    pub fn begin(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Whether messages are still to be sent and taken.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the client's frames are read.
    #[inline]
    fn is_reading(&self) -> bool {
        let is_there = matches!(self.phase, Phase::Open | Phase::Closing { .. });
        is_there && self.parting.is_none()
    }

    /// Whether there is nothing more to do.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether the socket is to be shut down once all is written.
    #[inline]
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    // What comes in.

    /// Takes from the front of what was read, up to the end of a message that is wanted.
    pub fn receive(&mut self, input: &mut &[u8], is_wanted: bool, now: Instant) -> Option<Payload> {
        self.heard = now;
        self.pinged = None;
        let message = self.decode(input, is_wanted, now);
        self.begun = match self.decoder.is_idle() {
            true => None,
            false => self.begun.or(Some(now)),
        };
        message
    }

    /// Of the frame that has begun, what is to come, in bytes.
    #[inline]
    pub fn missing(&self) -> usize {
        self.decoder.missing()
    }

    fn decode(&mut self, input: &mut &[u8], is_wanted: bool, now: Instant) -> Option<Payload> {
        while self.is_reading() {
            if self.decoder.is_idle() {
                self.begun = None;
            }
            let is_open = self.is_open();
            let outgoing = &mut self.outgoing;
            let mut pinged = |payload: &[u8]| {
                if is_open {
                    outgoing.pong(payload);
                }
            };
            let is_wanted = is_wanted && is_open;
            match self.decoder.decode(input, is_wanted, &mut pinged) {
                Ok(None) => return None,
                Ok(Some(Received::Message(message))) => match self.payload(message) {
                    Ok(payload) => return Some(payload),
                    Err((code, reason)) => self.fail(code, reason),
                },
                Ok(Some(Received::Ping | Received::Pong | Received::Dropped)) => {
                    self.count_unasked(now)
                }
                Ok(Some(Received::Close(code))) => self.answer_close(code, now),
                Err(violation) => self.fail(violation.code, violation.reason),
            }
        }
        *input = &[];
        None
    }

    /// The client will send nothing more.
    pub fn hung_up(&mut self) {
        self.phase = Phase::Over;
    }

    fn payload(&self, message: Message) -> Result<Payload, (CloseCode, &'static str)> {
        let (is_text, compressed) = match message {
            Message::Text(text) => return Ok(Payload::Text(text)),
            Message::Binary(bytes) => return Ok(Payload::Binary(bytes.into())),
            Message::Compressed { is_text, payload } => (is_text, payload),
        };
        let bytes = inflated(&compressed, self.config.max_message_size)?;
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
            self.fail(CloseCode::POLICY, "too many frames");
        }
    }

    fn answer_close(&mut self, code: Option<CloseCode>, now: Instant) {
        if self.is_open() && self.outgoing.len() == 0 {
            self.parting = Some((code, ""));
            return;
        }
        if self.is_open() {
            // It is slow already, and need not take messages any more: neither these nor, with a hole before them, others.
            self.outgoing.forget_data();
            frame::encode_close(code, "", self.outgoing.batch().buffer());
        }
        self.phase = Phase::Leaving { since: now };
    }

    // What goes out.

    /// Whether the next item has a place.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.is_open() && self.outgoing.len() < WRITE
    }

    /// What the source says; `None` is its end. It closes where it cannot say that, and gives the reason.
    pub fn send(
        &mut self,
        item: Option<Result<Item, BoxError>>,
        now: impl Fn() -> Instant,
    ) -> Option<Error> {
        let batch = self.outgoing.batch();
        let written = match item {
            Some(Ok(Item::Event(event))) => match self.messages.whole(event) {
                Ok((opcode, payload)) => {
                    self.outgoing.push(opcode, payload);
                    Ok(())
                }
                Err(event) => self.messages.event(&event, batch),
            },
            Some(Ok(item)) => match self.messages.item(&item, batch) {
                Ok(None) => Ok(()),
                Ok(Some(end)) => {
                    self.end(end, now());
                    return None;
                }
                Err(error) => Err(error),
            },
            None => {
                self.end(End::reconnect(None), now());
                return None;
            }
            Some(Err(error)) => {
                let is_lagged = error.downcast_ref().is_some_and(Error::is_lagged);
                let (code, reason) = if is_lagged {
                    (CloseCode::SLOW, "too slow")
                } else {
                    (CloseCode::ERROR, "the source failed")
                };
                self.close(code, reason, now());
                return None;
            }
        };
        let error = written.err()?;
        let (code, reason) = if error.is_gap_unsupported() {
            (CloseCode::GAP, "events were missed")
        } else {
            (CloseCode::ERROR, "an event cannot be sent")
        };
        self.close(code, reason, now());
        Some(error)
    }

    /// Tells of the end, where the form has a place for it, and closes.
    fn end(&mut self, end: End, now: Instant) {
        self.messages.end(end, self.outgoing.batch());
        let (code, reason) = match end {
            End { finished: true, .. } => (CloseCode::NORMAL, "".into()),
            End { expired: true, .. } => (CloseCode::EXPIRED, "expired".into()),
            End { retry: Some(_), .. } => (CloseCode::RESTART, end.to_json()),
            End { retry: None, .. } => (CloseCode::COME_BACK, "".into()),
        };
        self.close(code, &reason, now);
    }

    /// Ends the connection politely, behind what is written already.
    pub fn close(&mut self, code: CloseCode, reason: &str, now: Instant) {
        if self.is_open() {
            frame::encode_close(Some(code), reason, self.outgoing.batch().buffer());
            self.phase = Phase::Closing { since: now };
        }
    }

    /// Ends it because of what the client did: what it sends from now on is not looked at.
    fn fail(&mut self, code: CloseCode, reason: &'static str) {
        self.parting.get_or_insert((Some(code), reason));
    }

    /// Says so, behind what the source has said.
    pub fn settle(&mut self, now: impl FnOnce() -> Instant) {
        if let Some((code, reason)) = self.parting.take() {
            if self.is_open() {
                frame::encode_close(code, reason, self.outgoing.batch().buffer());
            }
            self.phase = Phase::Leaving { since: now() };
        }
    }

    /// What is to be written, where that is one slice, or nothing.
    #[inline]
    pub fn slice(&mut self) -> Option<&[u8]> {
        self.outgoing.slice()
    }

    /// What is to be written, in order; none of it is empty.
    pub fn slices(&mut self) -> impl Iterator<Item = &[u8]> {
        self.outgoing.slices()
    }

    /// So many bytes of it are written.
    pub fn wrote(&mut self, bytes: usize, now: impl Fn() -> Instant) {
        self.outgoing.wrote(bytes);
        if let Some(since) = self.stalled.take() {
            let now = now();
            if now.duration_since(since) >= LULL {
                // The client has taken something, and a ping may still be far from it.
                self.heard = now;
                self.pinged = None;
            }
        }
        if let Phase::Closing { since } | Phase::Leaving { since } = &mut self.phase {
            // It is told to close only by what comes last.
            *since = now();
        }
    }

    /// All is written.
    #[inline]
    pub fn flows(&mut self) {
        self.stalled = None;
    }

    /// The socket takes nothing more for now.
    pub fn stall(&mut self, now: impl FnOnce() -> Instant) {
        self.stalled.get_or_insert_with(now);
    }

    // Time.

    /// When [`expire`](Self::expire) is to be called next, if nothing happens before.
    pub fn wakes_at(&self) -> Option<Instant> {
        let config = &self.config;
        let stalled = self.stalled.map(|since| since + config.write_deadline);
        let next_ping = || self.ping_after.map(|after| self.heard + after);
        let due = match self.phase {
            Phase::Open if self.is_deaf => next_ping(),
            Phase::Open => {
                let begun = self.begun.map(|since| since + config.message_deadline);
                let pinged = self.pinged.map(|since| since + config.pong_deadline);
                sooner(begun, pinged.or_else(next_ping))
            }
            Phase::Closing { since } | Phase::Leaving { since } => {
                Some(since + config.close_deadline)
            }
            Phase::Over => None,
        };
        sooner(due, stalled)
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Instant) {
        let config = &self.config;
        let is_due = |since: Instant, deadline| since + deadline <= now;
        let was_due = |since: Option<Instant>, deadline| since.is_some_and(|s| is_due(s, deadline));
        if was_due(self.stalled, config.write_deadline) {
            self.phase = Phase::Over;
        }
        let is_silent = self
            .ping_after
            .is_some_and(|after| is_due(self.heard, after));
        match self.phase {
            Phase::Open if self.is_deaf => {
                if is_silent {
                    // No answer is read, but a write that fails shows that the client is gone.
                    self.outgoing.ping(random::bits());
                    self.heard = now;
                }
            }
            Phase::Open if was_due(self.begun, config.message_deadline) => {
                self.fail(CloseCode::POLICY, "message takes too long");
            }
            Phase::Open if was_due(self.pinged, config.pong_deadline) => {
                self.fail(CloseCode::NO_PONG, "no pong");
            }
            Phase::Open => {
                if self.pinged.is_none() && is_silent {
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

    /// Nothing is read, because nobody takes the client's messages, until [`resume_reads`](Self::resume_reads).
    pub fn pause_reads(&mut self) {
        self.is_deaf = true;
    }

    /// Whether nothing is read, because nobody takes the client's messages.
    #[inline]
    pub fn reads_paused(&self) -> bool {
        self.is_deaf
    }

    /// The client's messages are taken again.
    pub fn resume_reads(&mut self, now: impl FnOnce() -> Instant) {
        if std::mem::take(&mut self.is_deaf) {
            let now = now();
            self.heard = now;
            self.pinged = None;
            self.begun = self.begun.and(Some(now));
        }
    }
}

/// The first of two times that may never come.
fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::Event, websocket::MessageFormat};

    const SECOND: Duration = Duration::from_secs(1);

    /// A session, the time, and what it wrote so far.
    struct Fixture {
        session: Session,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self::with_ping_after(Some(25 * SECOND))
        }

        fn with_ping_after(ping_after: Option<Duration>) -> Self {
            let now = Instant::now();
            let messages = FrameEncoder {
                format: MessageFormat::Plain,
                #[cfg(feature = "deflate")]
                deflate: None,
            };
            let session = Session::new(Arc::default(), messages, ping_after, now);
            Self { session, now }
        }

        #[cfg(feature = "deflate")]
        fn deflate() -> crate::websocket::Deflate {
            let mut headers = http::HeaderMap::new();
            let offer = http::HeaderValue::from_static("permessage-deflate");
            headers.insert(http::header::SEC_WEBSOCKET_EXTENSIONS, offer);
            let (agreed, _) = deflate::negotiate(&headers).unwrap();
            crate::websocket::Deflate { agreed, from: 128 }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.session.expire(self.now);
            self.settle();
        }

        fn settle(&mut self) {
            let now = self.now;
            self.session.settle(|| now);
        }

        fn receive(&mut self, mut bytes: &[u8]) -> Option<Payload> {
            let message = self.session.receive(&mut bytes, false, self.now);
            self.settle();
            message
        }

        fn send(&mut self, text: &str) {
            let event = Event::text(text);
            // Others have it too.
            let item = Item::Event(event.clone());
            let now = self.now;
            self.session.send(Some(Ok(item)), || now);
            drop(event);
        }

        /// Writes at most so many bytes.
        fn write(&mut self, at_most: usize) -> Vec<u8> {
            let mut written = Vec::new();
            for slice in self.session.slices().take(8) {
                written.extend_from_slice(slice);
            }
            written.truncate(at_most);
            let now = self.now;
            self.session.wrote(written.len(), || now);
            written
        }

        fn written(&mut self) -> Vec<u8> {
            let mut all = Vec::new();
            loop {
                let written = self.write(usize::MAX);
                if written.is_empty() {
                    return all;
                }
                all.extend(written);
            }
        }
    }

    /// With a mask of zeros.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_let_go() {
        let mut it = Fixture::new();
        assert_eq!(it.session.wakes_at(), Some(it.now + 25 * SECOND));
        it.pass(24 * SECOND);
        assert!(it.written().is_empty());
        it.pass(SECOND);
        assert_eq!(it.written()[..2], [0x89, 8]);
        assert_eq!(it.session.wakes_at(), Some(it.now + 20 * SECOND));
        it.pass(20 * SECOND);
        assert_eq!(it.written(), b"\x88\x09\x0b\xc4no pong");
        assert!(it.session.is_leaving());
        it.pass(10 * SECOND);
        assert!(it.session.is_over());
        assert_eq!(it.session.wakes_at(), None);
    }

    #[test]
    fn any_byte_is_a_sign_of_life() {
        let mut it = Fixture::new();
        it.pass(25 * SECOND);
        it.written();
        it.pass(19 * SECOND);
        it.receive(&frame(0x8a, b"anything")[..3]);
        assert_eq!(it.session.wakes_at(), Some(it.now + 25 * SECOND));
        it.pass(19 * SECOND);
        assert!(it.session.is_open());
    }

    #[test]
    fn without_pings_an_idle_connection_sets_no_timer() {
        let it = Fixture::with_ping_after(None);
        assert_eq!(it.session.wakes_at(), None);
    }

    #[test]
    fn a_client_is_not_expected_to_answer_while_nobody_resume_reads() {
        let mut it = Fixture::new();
        it.pass(25 * SECOND);
        it.written();
        it.session.is_deaf = true;
        for _ in 0..10 {
            it.pass(25 * SECOND);
            assert_eq!(it.written()[..2], [0x89, 8]);
        }
        assert!(it.session.is_open());
        let now = it.now;
        it.session.resume_reads(|| now);
        assert_eq!(it.session.wakes_at(), Some(it.now + 25 * SECOND));
    }

    #[test]
    fn a_write_that_makes_no_progress_ends_it() {
        let mut it = Fixture::new();
        it.send("event");
        let now = it.now;
        it.session.stall(|| now);
        it.pass(20 * SECOND);
        it.receive(&frame(0x8a, b""));
        // One byte is progress.
        it.write(1);
        let now = it.now;
        it.session.stall(|| now);
        it.pass(20 * SECOND);
        it.receive(&frame(0x8a, b""));
        assert!(it.session.is_open());
        it.pass(10 * SECOND);
        assert!(it.session.is_over());
    }

    #[test]
    fn a_message_may_take_its_time_but_not_for_ever() {
        let mut it = Fixture::new();
        it.receive(&frame(0x01, b"begins"));
        for _ in 0..5 {
            it.pass(10 * SECOND);
            it.receive(&frame(0x00, b"goes on"));
        }
        assert!(it.session.is_open());
        it.pass(10 * SECOND);
        assert!(it.written().ends_with(b"\x03\xf0message takes too long"));
    }

    #[test]
    fn messages_that_follow_each_other_closely_are_not_one_long_message() {
        let mut it = Fixture::new();
        let frame = frame(0x81, b"dropped");
        it.receive(&frame[..3]);
        for _ in 0..10 {
            it.pass(10 * SECOND);
            it.receive(&[&frame[3..], &frame[..3]].concat());
        }
        assert!(it.session.is_open());
        it.pass(60 * SECOND);
        assert!(it.written().ends_with(b"\x03\xf0message takes too long"));
    }

    #[test]
    fn a_slow_client_has_as_long_to_close_as_any_other() {
        let mut it = Fixture::new();
        it.send(&"x".repeat(100));
        let now = it.now;
        it.session.send(None, || now);
        for _ in 0..20 {
            it.pass(9 * SECOND);
            assert_eq!(it.write(5).len(), 5);
        }
        assert!(it.written().ends_with(b"x\x88\x02\x0b\xb8"));
        it.pass(9 * SECOND);
        assert!(!it.session.is_over());
        it.pass(SECOND);
        assert!(it.session.is_over());
    }

    #[test]
    fn a_client_that_takes_what_waits_need_not_answer_a_ping_in_time() {
        let mut it = Fixture::new();
        it.send(&"x".repeat(5000));
        for _ in 0..20 {
            let now = it.now;
            it.session.stall(|| now);
            it.pass(25 * SECOND);
            it.write(1);
        }
        assert!(it.session.is_open());
        it.written();
        it.pass(25 * SECOND);
        it.written();
        it.pass(20 * SECOND);
        assert!(it.written().ends_with(b"\x0b\xc4no pong"));
    }

    #[test]
    fn a_pong_passes_ahead_of_messages_but_not_into_one() {
        let mut it = Fixture::new();
        let large = "x".repeat(5000);
        it.send(&large);
        it.send(&large);
        let begun = it.write(1000);
        it.receive(&frame(0x89, b"now"));
        let rest = [begun, it.written()].concat();
        let first = 4 + large.len();
        assert_eq!(rest[first..first + 5], *b"\x8a\x03now");
        assert_eq!(rest.len(), 2 * first + 5);
    }

    /// A text message of 20 000 bytes that nobody else has: it is not copied.
    fn large() -> (Event, Vec<u8>) {
        let text = "x".repeat(20_000);
        let frame = [b"\x81\x7e\x4e\x20", text.as_bytes()].concat();
        (Event::text(text), frame)
    }

    #[test]
    fn nothing_comes_between_a_header_and_its_payload() {
        for at in [0, 1, 5, 6, 8, 9, 10, 11, 20_008, 20_009] {
            let mut it = Fixture::new();
            it.send("one");
            let (event, frame_of_it) = large();
            let now = it.now;
            it.session.send(Some(Ok(Item::Event(event))), || now);
            it.send("two");
            let begun = it.write(at);
            it.receive(&frame(0x89, b"now"));
            it.write(0);
            let all = [begun, it.written()].concat();
            let (first, last, pong) = (b"\x81\x03one", b"\x81\x03two", b"\x8a\x03now");
            let expected = match at {
                0 => [&pong[..], first, &frame_of_it, last].concat(),
                1..=5 => [&first[..], pong, &frame_of_it, last].concat(),
                _ => [&first[..], &frame_of_it, pong, last].concat(),
            };
            assert!(all == expected, "{at}");
            assert!(it.session.outgoing.is_bare());
        }
    }

    #[test]
    fn a_payload_that_has_begun_is_finished_before_the_close() {
        for (at, frames) in [(0, 0), (3, 1), (4, 1), (5, 1), (20_004, 1), (20_005, 2)] {
            let mut it = Fixture::new();
            let (_, frame_of_it) = large();
            for _ in 0..3 {
                let now = it.now;
                it.session.send(Some(Ok(Item::Event(large().0))), || now);
            }
            let begun = it.write(at);
            it.receive(&frame(0x88, b"\x03\xe8"));
            let all = [begun, it.written()].concat();
            let expected = [&frame_of_it.repeat(frames)[..], b"\x88\x02\x03\xe8"].concat();
            assert!(all == expected, "{at}");
        }
    }

    #[test]
    fn a_large_payload_that_nobody_else_has_is_not_copied() {
        let mut it = Fixture::new();
        let payload = bytes::Bytes::from(vec![b'x'; 20_000]);
        let now = it.now;
        it.session.send(
            Some(Ok(Item::Event(Event::binary(payload.clone())))),
            || now,
        );
        let slices: Vec<&[u8]> = it.session.slices().collect();
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[1].as_ptr(), payload.as_ptr());
    }

    #[test]
    fn pongs_that_wait_are_bounded() {
        let mut it = Fixture::new();
        it.send("stalled");
        it.write(1);
        for n in 0..900_u32 {
            it.receive(&frame(0x89, &[n as u8; 125]));
        }
        let written = it.written();
        assert!(written.len() < 5 * 1024, "{}", written.len());
        assert!(written.ends_with(&[899_u32 as u8; 125]));
    }

    #[test]
    fn nothing_is_sent_behind_a_close() {
        let mut it = Fixture::new();
        it.send("last");
        let now = it.now;
        it.session.send(None, || now);
        it.receive(&frame(0x89, b"ping"));
        assert_eq!(it.written(), b"\x81\x04last\x88\x02\x0b\xb8");
        assert!(!it.session.has_room() && !it.session.is_leaving());
        it.receive(&frame(0x88, b"\x0b\xb8"));
        assert!(it.session.is_leaving() && it.written().is_empty());
    }

    #[test]
    fn a_close_is_answered_before_what_waits() {
        let mut it = Fixture::new();
        let large = "x".repeat(5000);
        it.send(&large);
        it.send("never sent");
        it.write(10);
        it.receive(&frame(0x88, b"\x03\xe8"));
        let rest = it.written();
        assert_eq!(rest.len(), 4 + 5000 - 10 + 4);
        assert!(rest.ends_with(b"x\x88\x02\x03\xe8"));
    }

    #[test]
    fn what_the_source_says_at_once_goes_before_the_answer_to_a_close() {
        let mut it = Fixture::new();
        let now = it.now;
        it.session
            .receive(&mut &frame(0x88, b"\x03\xe8")[..], false, now);
        assert!(it.session.has_room());
        it.send("answer");
        it.settle();
        assert!(it.session.is_leaving());
        assert_eq!(it.written(), b"\x81\x06answer\x88\x02\x03\xe8");
    }

    #[test]
    fn a_flood_ends_and_steady_pings_do_not() {
        let mut it = Fixture::new();
        for _ in 0..10 {
            for _ in 0..FLOOD {
                it.receive(&frame(0x89, b""));
            }
            it.written();
            it.now += SECOND;
        }
        assert!(it.session.is_open());
        for _ in 0..=FLOOD {
            it.receive(&frame(0x89, b""));
        }
        assert!(it.written().ends_with(b"\x03\xf0too many frames"));
    }

    #[test]
    fn all_subscribers_write_the_same_memory() {
        let event = Event::text("x".repeat(1000));
        let pointers = |is_compressed: bool| {
            let mut all = Vec::new();
            for _ in 0..10 {
                let mut it = Fixture::new();
                #[cfg(feature = "deflate")]
                if is_compressed {
                    it.session.messages.deflate = Some(Fixture::deflate());
                }
                let item = Item::Event(event.clone());
                let now = it.now;
                it.session.send(Some(Ok(item)), || now);
                let slices: Vec<&[u8]> = it.session.slices().collect();
                assert_eq!(slices.len(), 1);
                let is_marked = slices[0][0] & 0x40 != 0;
                assert_eq!(is_marked, is_compressed);
                all.push(slices[0].as_ptr());
            }
            all
        };
        for is_compressed in [false, cfg!(feature = "deflate")] {
            let pointers = pointers(is_compressed);
            assert!(pointers.iter().all(|pointer| *pointer == pointers[0]));
        }
    }

    #[test]
    fn an_idle_session_is_small_and_holds_nothing() {
        assert!(size_of::<Session>() <= 512, "{}", size_of::<Session>());
        let mut it = Fixture::new();
        it.send("event");
        it.receive(&frame(0x89, b"ping"));
        it.written();
        assert!(it.session.outgoing.is_bare());
    }
}
