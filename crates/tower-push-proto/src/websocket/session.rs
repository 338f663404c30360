//! One WebSocket connection on the server's side, as a state machine.

use std::{
    borrow::Cow,
    num::NonZero,
    sync::Arc,
    time::{Duration, Instant},
};

#[cfg(feature = "deflate")]
use super::deflate::{self, InflateError};
use super::{
    frame::{self, Role},
    frame_decoder::{DecodeError, DecoderConfig, DecoderEvent, FrameDecoder, Message},
    frame_encoder::FrameEncoder,
    send_queue::SendQueue,
    session_config::{MAX_TIMEOUT, SessionConfig},
};
use crate::{
    encoder::{Encoder, StreamEnd},
    error::{BoxError, Error},
    event::{CloseCode, CloseFrame, EventRun, Item, ItemOutcome, Payload},
    random,
};

/// One WebSocket connection on the server's side, as a state machine without I/O.
///
/// A session owns no socket, reads no clock and spawns no task. The caller moves bytes, items and times between the session and the
/// socket, the source and the timer:
///
/// ```text
///                 handle_input             handle_item
///  socket, read ──────────────► Session ◄────────────── source
/// socket, write ◄──────────────         ──────────────► client's messages
///                 poll_transmit   ▲  │    (returned by handle_input)
///                  handle_timeout │  ▼ poll_timeout
///                               timer
/// ```
///
/// # Protocol
/// The methods are of four kinds:
///
/// - **getters**, which may be called at any time: [`upgrade_deadline`](Self::upgrade_deadline), [`is_open`](Self::is_open),
///   [`accepts_items`](Self::accepts_items), [`is_closed`](Self::is_closed), [`wants_item`](Self::wants_item),
///   [`wants_shutdown`](Self::wants_shutdown), [`reads_paused`](Self::reads_paused), [`remaining_frame_len`](Self::remaining_frame_len);
/// - **handlers**, named `handle_*`, which report to the session what happened at the socket, the source or the timer;
/// - **commands**: [`close`](Self::close), [`pause_reads`](Self::pause_reads), [`resume_reads`](Self::resume_reads) and
///   [`apply_pending_close`](Self::apply_pending_close);
/// - **polls**, named `poll_*`, which return what the caller has to do.
///
/// Once the socket is upgraded, call [`handle_upgraded`](Self::handle_upgraded). If the socket is not upgraded by
/// [`upgrade_deadline`](Self::upgrade_deadline), drop the session. After the upgrade, repeat this round whenever the socket, the
/// source or the timer is ready:
///
/// 1. **Input.** Unless [`reads_paused`](Self::reads_paused), read from the socket, and call
///    [`handle_input`](Self::handle_input) until it has consumed the bytes. At the end of the input, or if the socket fails, call
///    [`handle_disconnect`](Self::handle_disconnect). If [`take_client_close`](Self::take_client_close) returns a frame, tell the source
///    that the client sends no more messages.
/// 2. **Items.** While [`wants_item`](Self::wants_item), poll the source, and pass what it yields to
///    [`handle_item`](Self::handle_item).
/// 3. **Pending close.** Call [`apply_pending_close`](Self::apply_pending_close). A close frame or a broken rule in the input of step 1
///    takes effect in this step, so that the items of step 2 are sent first.
/// 4. **Output.** Write what [`poll_transmit`](Self::poll_transmit) returns, and report each write with
///    [`handle_written`](Self::handle_written), until nothing is left. Once everything is written, flush the socket, shut its writing side
///    down if [`wants_shutdown`](Self::wants_shutdown), and call [`handle_write_drained`](Self::handle_write_drained). If the socket
///    accepts no more bytes for now, call [`handle_write_blocked`](Self::handle_write_blocked) instead.
/// 5. **End.** If [`is_closed`](Self::is_closed), drop the socket and the session. If the session no longer
///    [accepts items](Self::accepts_items), drop the source.
/// 6. **Time.** Set the timer to [`poll_timeout`](Self::poll_timeout), which each of the steps above may change. When the timer
///    fires, call [`handle_timeout`](Self::handle_timeout), and start a new round.
///
/// # Time
/// The times that a session gets must not decrease from call to call. A method that takes a closure reads the clock only if it needs the
/// time. A timer that fires too early does no harm. A timer that fires too late delays deadlines and pings.
///
/// # Memory
/// An idle session owns no heap memory. A session buffers at most one incomplete message of the client, whose length is at most
/// [`max_message_size`](SessionConfig::max_message_size). A session also buffers at most 62 KiB of output and one more event.
///
/// # Example
/// ```
/// use std::{sync::Arc, time::{Duration, Instant}};
/// use tower_push_proto::{
///     Event, Item,
///     event::Payload,
///     websocket::{FrameEncoder, MessageFormat, Session, SessionConfig},
/// };
///
/// let config = Arc::new(SessionConfig::new());
/// let encoder = FrameEncoder::new(MessageFormat::Json);
/// let ping_interval = Duration::from_secs(25);
/// let mut session = Session::new(config, encoder, Some(ping_interval), Instant::now());
/// session.handle_upgraded(Instant::now());
///
/// // The client sends a text message, masked with zeros.
/// let mut input = &b"\x81\x82\0\0\0\0hi"[..];
/// let message = session.handle_input(&mut input, true, Instant::now());
/// assert_eq!(message, Some(Payload::Text("hi".to_owned())));
///
/// // The source yields an event, and finishes.
/// session.handle_item(Some(Ok(Item::Event(Event::text("hello")))), Instant::now)?;
/// session.handle_item(Some(Ok(Item::Finished)), Instant::now)?;
/// session.apply_pending_close(Instant::now);
///
/// let output = session.poll_transmit().collect::<Vec<_>>().concat();
/// session.handle_written(output.len(), Instant::now);
/// session.handle_write_drained();
/// assert!(output.starts_with(b"\x81\x10{\"data\":\"hello\"}"));
/// assert!(output.ends_with(b"\x88\x02\x03\xe8"));
///
/// // The client answers the close frame.
/// session.handle_input(&mut &b"\x88\x82\0\0\0\0\x03\xe8"[..], true, Instant::now());
/// session.apply_pending_close(Instant::now);
/// assert!(session.wants_shutdown());
/// # Ok::<(), tower_push_proto::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    config: Arc<SessionConfig>,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
    send_queue: SendQueue,
    state: SessionState,
    /// The time without input from the client after which the session sends a ping, in milliseconds. `None` turns pings off.
    ping_interval: Option<NonZero<u32>>,
    /// The time at which the client last showed that it is alive: it sent a byte, or read a byte after a long write block.
    last_activity: Instant,
    unsolicited_frames: UnsolicitedFrameCounter,
    /// State that most sessions do not have at most times. `None` if all fields of this state are `None`.
    rarely_used: Option<Box<RarelyUsedState>>,
    reads_paused: bool,
}

/// The state of a session that waits for the client, or that is about to close.
#[derive(Debug, Default)]
struct RarelyUsedState {
    /// The time at which the last ping was sent, if the client has shown no activity since.
    unanswered_ping: Option<Instant>,
    /// The time at which the first byte of the client's incomplete message arrived. `None` between messages.
    message_started: Option<Instant>,
    /// The time from which the socket has accepted no bytes. `None` if the last write succeeded.
    write_blocked_since: Option<Instant>,
    /// The close that the next [`apply_pending_close`](Session::apply_pending_close) starts. While a close is pending, no frame is read.
    pending_close: Option<PendingClose>,
    /// The close frame by which the client has begun the closing handshake, until
    /// [`take_client_close`](Session::take_client_close) takes the frame.
    client_close: Option<Box<CloseFrame>>,
}

/// The state of the closing handshake ([RFC 6455 §7.1](https://www.rfc-editor.org/rfc/rfc6455#section-7.1)). The session enters the states
/// in the order of the variants, and may skip some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionState {
    Open,
    /// The client's close frame has arrived. The last items of the source are sent before our close frame.
    Answering {
        /// The code of the client's close frame, which our close frame repeats.
        code: Option<CloseCode>,
        /// The time at which our close frame is queued, unless the source ends earlier.
        deadline: Instant,
    },
    /// Our close frame is queued or written, and the client's close frame is awaited.
    Closing {
        /// When the close timeout began to run. Each write restarts the timeout.
        deadline_start: Instant,
    },
    /// Frames of the client are discarded. The socket's writing side is shut down once everything is written. After the
    /// shutdown, the client closes the connection.
    ShuttingDown {
        /// When the close timeout began to run. Each write restarts the timeout.
        deadline_start: Instant,
    },
    Closed,
}

/// A close, because of the client's behavior, that starts when the items of the current round have been handled.
#[derive(Clone, Copy, Debug)]
struct PendingClose {
    /// The code of our close frame, or `None` to end the connection without a close frame.
    code: Option<CloseCode>,
    reason: &'static str,
}

/// Counts pings, pongs and dropped messages within one second.
#[derive(Debug)]
struct UnsolicitedFrameCounter {
    second_start: Instant,
    count: u32,
}

/// The maximum number of pings, pongs and dropped messages in one second. More of them close the connection with 1008.
const MAX_UNSOLICITED_FRAMES_PER_SECOND: u32 = 1000;

/// The least duration of a write block after which a write shows that the client is alive: 1 s. On HTTP/2 a shorter block may be a wait for
/// another task of the server.
const MIN_MEANINGFUL_WRITE_BLOCK: Duration = Duration::from_secs(1);

/// The length of the send queue, in bytes, from which the session takes no item: 62 KiB. With one more short message, the queue is still shorter
/// than 64 KiB. Linux passes at most 64 KiB through its network stack at once, and a few bytes more cost as much as another write.
const SEND_QUEUE_LIMIT: usize = 62 * 1024;

impl Session {
    /// Creates the session of a connection that is about to be upgraded.
    ///
    /// A client that sends nothing for `ping_interval` is pinged. The interval is rounded up to a millisecond. An interval of more than 30
    /// days is reduced to 30 days. Without an interval, the client is never pinged, and an idle session needs no timer.
    pub fn new(
        config: Arc<SessionConfig>,
        encoder: FrameEncoder,
        ping_interval: Option<Duration>,
        now: Instant,
    ) -> Self {
        let decoder_config = DecoderConfig::new(Role::Server)
            .max_message_size(config.max_message_size)
            .allow_compressed(encoder.is_compression_negotiated());
        Self {
            encoder,
            decoder: FrameDecoder::new(decoder_config),
            send_queue: SendQueue::new(config.writes_messages_separately),
            state: SessionState::Open,
            ping_interval: ping_interval.map(whole_milliseconds),
            last_activity: now,
            unsolicited_frames: UnsolicitedFrameCounter {
                second_start: now,
                count: 0,
            },
            rarely_used: None,
            reads_paused: false,
            config,
        }
    }

    /// Returns the time by which [`handle_upgraded`](Self::handle_upgraded) must be called: the
    /// [write timeout](SessionConfig::write_timeout) of the response that agrees to the upgrade.
    pub fn upgrade_deadline(&self) -> Instant {
        self.last_activity + self.config.write_timeout
    }

    /// Handles the upgrade of the socket. The ping interval begins to run.
    pub fn handle_upgraded(&mut self, now: Instant) {
        self.last_activity = now;
    }

    /// Whether messages can be exchanged: no close frame has been queued or handled.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.state == SessionState::Open
    }

    /// Whether items can still be sent: the session is open, or answers the client's close frame. Drop the source once this is `false`.
    #[inline]
    pub fn accepts_items(&self) -> bool {
        matches!(
            self.state,
            SessionState::Open | SessionState::Answering { .. }
        )
    }

    /// Whether the session has ended. Drop the socket once this is `true`.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.state == SessionState::Closed
    }

    /// Whether the socket's writing side must be shut down once everything is written. The session continues until the client closes the
    /// connection, or until the [close timeout](SessionConfig::close_timeout).
    ///
    /// A caller whose socket is one stream of an HTTP/2 connection need not wait for the client: the caller then calls
    /// [`handle_disconnect`](Self::handle_disconnect) once the writing side is shut down.
    #[inline]
    pub fn wants_shutdown(&self) -> bool {
        matches!(self.state, SessionState::ShuttingDown { .. })
    }

    // Methods for input.

    /// Handles bytes that were read from the socket, up to the end of the first complete message. Removes the handled bytes from
    /// the front of `input`, and returns the message. Returns `None` once `input` is empty.
    ///
    /// A message is kept if `keep_message` is true when its first frame begins. Any other message is validated and dropped, but not
    /// inflated. More than 1000 dropped messages, pings and pongs in a second close the connection. Once the session is closing, every
    /// message is dropped.
    ///
    /// Pings are answered. After a broken rule or a close frame, the rest of the input is discarded, and
    /// [`apply_pending_close`](Self::apply_pending_close) closes the connection.
    pub fn handle_input(
        &mut self,
        input: &mut &[u8],
        keep_message: bool,
        now: Instant,
    ) -> Option<Payload> {
        self.last_activity = now;
        self.change_rarely_used(|rarely_used| rarely_used.unanswered_ping = None);
        let message = self.decode_input(input, keep_message, now);
        match self.decoder.is_idle() {
            true => self.change_rarely_used(|rarely_used| rarely_used.message_started = None),
            false => {
                let rarely_used = self.rarely_used.get_or_insert_default();
                rarely_used.message_started.get_or_insert(now);
            }
        }
        message
    }

    fn decode_input(
        &mut self,
        input: &mut &[u8],
        keep_message: bool,
        now: Instant,
    ) -> Option<Payload> {
        while self.is_reading_frames() {
            if self.decoder.is_idle() {
                self.change_rarely_used(|rarely_used| rarely_used.message_started = None);
            }
            let is_open = self.is_open();
            let send_queue = &mut self.send_queue;
            let mut on_ping = |payload: &[u8]| {
                if is_open {
                    send_queue.push_pong(payload);
                }
            };
            let keep_message = keep_message && is_open;
            match self.decoder.decode(input, keep_message, &mut on_ping) {
                Ok(None) => return None,
                Ok(Some(DecoderEvent::Message(message))) => match self.message_payload(message) {
                    Ok(payload) => return Some(payload),
                    Err(error) => self.schedule_close(Some(error.close_code), error.reason),
                },
                Ok(Some(
                    DecoderEvent::Ping | DecoderEvent::Pong | DecoderEvent::DroppedMessage,
                )) => {
                    self.count_unsolicited_frame(now);
                }
                Ok(Some(DecoderEvent::Close(frame))) => self.handle_close_frame(frame, now),
                Err(error) => self.schedule_close(Some(error.close_code), error.reason),
            }
        }
        *input = &[];
        None
    }

    #[inline]
    fn is_reading_frames(&self) -> bool {
        let awaits_frames = matches!(
            self.state,
            SessionState::Open | SessionState::Closing { .. }
        );
        let rarely_used = self.rarely_used.as_ref();
        awaits_frames && rarely_used.is_none_or(|rarely_used| rarely_used.pending_close.is_none())
    }

    /// Changes the rarely used state, if the session has one, and drops this state if all of its fields are `None` then.
    #[inline]
    fn change_rarely_used(&mut self, change: impl FnOnce(&mut RarelyUsedState)) {
        if let Some(rarely_used) = &mut self.rarely_used {
            change(rarely_used);
            if rarely_used.is_empty() {
                self.rarely_used = None;
            }
        }
    }

    fn write_blocked_since(&self) -> Option<Instant> {
        self.rarely_used.as_ref()?.write_blocked_since
    }

    fn message_started(&self) -> Option<Instant> {
        self.rarely_used.as_ref()?.message_started
    }

    fn unanswered_ping(&self) -> Option<Instant> {
        self.rarely_used.as_ref()?.unanswered_ping
    }

    fn ping_interval(&self) -> Option<Duration> {
        let milliseconds = self.ping_interval?.get();
        Some(Duration::from_millis(milliseconds.into()))
    }

    /// Returns the number of payload bytes of the current data frame that have not arrived, or 0 if no data frame has begun.
    ///
    /// A caller can limit a read to this length, so that the read ends with the frame.
    #[inline]
    pub fn remaining_frame_len(&self) -> usize {
        self.decoder.remaining_frame_len()
    }

    /// Handles the end of the input, or a failure of the socket: the session [is closed](Self::is_closed).
    pub fn handle_disconnect(&mut self) {
        self.state = SessionState::Closed;
    }

    /// Converts a message of the decoder into a payload. A compressed message is inflated.
    fn message_payload(&self, message: Message) -> Result<Payload, DecodeError> {
        let (is_text, compressed) = match message {
            Message::Text(text) => return Ok(Payload::Text(text)),
            Message::Binary(bytes) => return Ok(Payload::Binary(bytes.into())),
            Message::Compressed { is_text, payload } => (is_text, payload),
        };
        let bytes = inflate_message(&compressed, self.config.max_message_size)?;
        if !is_text {
            return Ok(Payload::Binary(bytes.into()));
        }
        let text = String::from_utf8(bytes);
        text.map(Payload::Text)
            .map_err(|_| DecodeError::INVALID_UTF8)
    }

    fn count_unsolicited_frame(&mut self, now: Instant) {
        let frames = &mut self.unsolicited_frames;
        if now.duration_since(frames.second_start) >= Duration::from_secs(1) {
            *frames = UnsolicitedFrameCounter {
                second_start: now,
                count: 0,
            };
        }
        frames.count += 1;
        if frames.count > MAX_UNSOLICITED_FRAMES_PER_SECOND {
            self.schedule_close(Some(CloseCode::POLICY_VIOLATION), "too many frames");
        }
    }

    fn handle_close_frame(&mut self, close: Box<CloseFrame>, now: Instant) {
        if !self.is_open() {
            self.state = SessionState::ShuttingDown {
                deadline_start: now,
            };
            return;
        }
        let (code, answer_timeout) = (close.code(), self.config.answer_timeout);
        self.rarely_used.get_or_insert_default().client_close = Some(close);
        if answer_timeout.is_zero() && self.send_queue.unwritten_message_len() > 0 {
            // The client is slow, and browsers read no messages after they have sent a close frame. Queued messages are therefore
            // discarded. Items of the current round come after the discarded messages, so these items are not sent either.
            self.send_queue.discard_unstarted_messages();
            self.answer_close(code, now);
            return;
        }
        let deadline = now + answer_timeout;
        self.state = SessionState::Answering { code, deadline };
    }

    /// Takes the close frame by which the client has begun the closing handshake. Returns `None` if there is no such frame, or if the frame
    /// was taken before. A close frame that answers ours is not returned.
    pub fn take_client_close(&mut self) -> Option<CloseFrame> {
        let mut frame = None;
        self.change_rarely_used(|rarely_used| frame = rarely_used.client_close.take());
        frame.map(|frame| *frame)
    }

    // Methods for items.

    /// Whether the caller may pass an item to [`handle_item`](Self::handle_item): the session [accepts items](Self::accepts_items), and
    /// less than 62 KiB of messages are unwritten.
    #[inline]
    pub fn wants_item(&self) -> bool {
        self.accepts_items() && self.send_queue.unwritten_message_len() < SEND_QUEUE_LIMIT
    }

    /// Handles the result of polling the source: an item, an error, or `None` at the end. An end or an error closes the connection with a
    /// close code and a reason for each case. After the client's close frame, the item `None` makes the session answer that frame. Does nothing
    /// unless the session [accepts items](Self::accepts_items).
    ///
    /// # Errors
    /// An error if the message format cannot express the item. The session then also closes the connection.
    pub fn handle_item(
        &mut self,
        item: Option<Result<Item, BoxError>>,
        now: impl FnOnce() -> Instant,
    ) -> Result<(), Error> {
        if !self.accepts_items() {
            return Ok(());
        }
        let codes = self.config.close_codes;
        let Self {
            encoder,
            send_queue,
            ..
        } = self;
        let encoded = match item {
            Some(Ok(Item::Event(event))) => match encoder.take_unshared_payload(event) {
                Ok((opcode, payload)) => {
                    send_queue.push_message(opcode, payload);
                    Ok(())
                }
                Err(event) => send_queue.encode_messages(|out| encoder.event(&event, out)),
            },
            Some(Ok(Item::Closed(close))) => {
                send_queue.encode_messages(|out| encoder.end(close.end, out));
                self.start_close(&close.frame, now());
                return Ok(());
            }
            Some(Ok(item)) => match send_queue.encode_messages(|out| item.write_to(encoder, out)) {
                Ok(ItemOutcome::EndsStream(end)) => {
                    self.end_stream(end, now());
                    return Ok(());
                }
                // A frame encoder refuses no event, so nothing but the item is written.
                Ok(ItemOutcome::Written | ItemOutcome::GapWritten(_)) => Ok(()),
                Err(error) => Err(error),
            },
            None => {
                match self.state {
                    SessionState::Answering { code, .. } => self.answer_close(code, now()),
                    _ => self.end_stream(StreamEnd::reconnect(None), now()),
                }
                return Ok(());
            }
            Some(Err(error)) => {
                let is_lagged = error.downcast_ref().is_some_and(Error::is_lagged);
                let (code, reason) = if is_lagged {
                    (codes.lagged, "too slow")
                } else {
                    (codes.failed, "the source failed")
                };
                self.close_or_cut(code, reason, now());
                return Ok(());
            }
        };
        encoded.inspect_err(|error| {
            let (code, reason) = if error.is_gap_unsupported() {
                (codes.events_missed, "events were missed")
            } else {
                (codes.failed, "an event cannot be sent")
            };
            self.close_or_cut(code, reason, now());
        })
    }

    /// Handles a run of the source's events, like a call of [`handle_item`](Self::handle_item) for each event. All sessions with the same
    /// message format and compression send the same bytes.
    pub fn handle_run(&mut self, run: &EventRun) {
        if self.accepts_items() {
            // A frame encoder writes each run at once.
            let encoder = &mut self.encoder;
            self.send_queue
                .encode_messages(|out| encoder.write_run(run, out));
        }
    }

    /// Sends the message for the end, if the message format has one, and closes the connection.
    fn end_stream(&mut self, end: StreamEnd, now: Instant) {
        let encoder = &mut self.encoder;
        self.send_queue.encode_messages(|out| encoder.end(end, out));
        let codes = self.config.close_codes;
        let (code, reason) = match end {
            StreamEnd { finished: true, .. } => (codes.finished, "".into()),
            StreamEnd { expired: true, .. } => (codes.expired, "expired".into()),
            StreamEnd { retry: Some(_), .. } => (codes.ended_with_retry, end.to_json()),
            StreamEnd { retry: None, .. } => (codes.ended, "".into()),
        };
        self.close_or_cut(code, reason, now);
    }

    // Methods for the closing handshake.

    /// Starts the closing handshake: queues `frame` after the unwritten messages, and awaits the client's close frame. Does nothing unless
    /// the session [accepts items](Self::accepts_items).
    pub fn close(&mut self, frame: &CloseFrame, now: Instant) {
        if self.accepts_items() {
            self.start_close(frame, now);
        }
    }

    fn start_close(&mut self, frame: &CloseFrame, now: Instant) {
        self.send_queue
            .encode_messages(|out| frame::encode_close_frame(frame, out.buffer()));
        self.state = match self.state {
            SessionState::Open if self.config.awaits_close_answer => SessionState::Closing {
                deadline_start: now,
            },
            // The client's close frame has arrived already, or is not awaited.
            _ => SessionState::ShuttingDown {
                deadline_start: now,
            },
        };
    }

    /// Starts the closing handshake with `code`. Without a code, ends the connection after the unwritten messages without a close frame.
    fn close_or_cut(
        &mut self,
        code: Option<CloseCode>,
        reason: impl Into<Cow<'static, str>>,
        now: Instant,
    ) {
        match code {
            Some(code) => self.start_close(&CloseFrame::new(code, reason), now),
            None => {
                self.state = SessionState::ShuttingDown {
                    deadline_start: now,
                };
            }
        }
    }

    /// Answers the client's close frame with its own code.
    fn answer_close(&mut self, code: Option<CloseCode>, now: Instant) {
        let frame = code.map_or_else(CloseFrame::without_code, |code| CloseFrame::new(code, ""));
        self.send_queue
            .encode_messages(|out| frame::encode_close_frame(&frame, out.buffer()));
        self.state = SessionState::ShuttingDown {
            deadline_start: now,
        };
    }

    /// Stops the reading of frames, and schedules a close for [`apply_pending_close`](Self::apply_pending_close). The first
    /// scheduled close wins.
    fn schedule_close(&mut self, code: Option<CloseCode>, reason: &'static str) {
        let rarely_used = self.rarely_used.get_or_insert_default();
        rarely_used
            .pending_close
            .get_or_insert(PendingClose { code, reason });
    }

    /// Returns the code and the reason with which [`apply_pending_close`](Self::apply_pending_close) will close the connection, because the
    /// client has broken a rule or has missed a deadline. A caller can log them: many clients do not report a close code.
    pub fn pending_violation(&self) -> Option<(CloseCode, &'static str)> {
        let PendingClose { code, reason } = self.rarely_used.as_ref()?.pending_close?;
        Some((code?, reason))
    }

    /// Closes the connection if the client has broken a rule or has missed a deadline, and answers the client's close frame once the
    /// [answer timeout](SessionConfig::answer_timeout) has passed. The close frame is queued after everything else, so call this method
    /// after the round's last [`handle_item`](Self::handle_item).
    pub fn apply_pending_close(&mut self, now: impl FnOnce() -> Instant) {
        let mut pending_close = None;
        self.change_rarely_used(|rarely_used| pending_close = rarely_used.pending_close.take());
        if let Some(PendingClose { code, reason }) = pending_close {
            let now = now();
            if self.is_open() {
                self.close_or_cut(code, reason, now);
            }
            self.state = SessionState::ShuttingDown {
                deadline_start: now,
            };
        } else if let SessionState::Answering { code, deadline } = self.state {
            let now = now();
            if now >= deadline {
                self.answer_close(code, now);
            }
        }
    }

    // Methods for output.

    /// Returns the bytes to write, in order. Empty slices are left out. With
    /// [`write_messages_separately`](SessionConfig::write_messages_separately), returns the bytes of one frame at a time.
    pub fn poll_transmit(&mut self) -> impl Iterator<Item = &[u8]> {
        self.send_queue.slices()
    }

    /// Returns the bytes of [`poll_transmit`](Self::poll_transmit) if they are contiguous, else `None`. Returns an empty slice if nothing is to be
    /// written. The bytes are usually contiguous, and then this method is faster than [`poll_transmit`](Self::poll_transmit).
    #[inline]
    pub fn poll_transmit_contiguous(&mut self) -> Option<&[u8]> {
        self.send_queue.unwritten_if_contiguous()
    }

    /// Handles a write: the socket has accepted the first `written` bytes of [`poll_transmit`](Self::poll_transmit).
    pub fn handle_written(&mut self, written: usize, now: impl FnOnce() -> Instant) {
        self.send_queue.advance(written);
        let mut blocked_since = None;
        self.change_rarely_used(|rarely_used| {
            blocked_since = rarely_used.write_blocked_since.take()
        });
        if blocked_since.is_none() && self.is_open() {
            return;
        }
        let now = now();
        let blocked_for = blocked_since.map(|since| now.duration_since(since));
        if blocked_for.is_some_and(|time| time >= MIN_MEANINGFUL_WRITE_BLOCK) {
            // The client is reading, but may not have reached the ping yet.
            self.last_activity = now;
            self.change_rarely_used(|rarely_used| rarely_used.unanswered_ping = None);
        }
        if let SessionState::Closing { deadline_start }
        | SessionState::ShuttingDown { deadline_start } = &mut self.state
        {
            // The close frame is written last, so that the client has nothing to answer before its last byte is written.
            *deadline_start = now;
        }
    }

    /// Handles a blocked write: the socket accepts no more bytes for now. The [write timeout](SessionConfig::write_timeout) runs until
    /// the next [`handle_written`](Self::handle_written) or [`handle_write_drained`](Self::handle_write_drained).
    pub fn handle_write_blocked(&mut self, now: impl FnOnce() -> Instant) {
        let rarely_used = self.rarely_used.get_or_insert_default();
        rarely_used.write_blocked_since.get_or_insert_with(now);
    }

    /// Handles the success of a round of writes: everything is written and flushed.
    #[inline]
    pub fn handle_write_drained(&mut self) {
        self.change_rarely_used(|rarely_used| rarely_used.write_blocked_since = None);
    }

    // Methods for time.

    /// Returns when [`handle_timeout`](Self::handle_timeout) must be called, unless another call changes this time first. Returns
    /// `None` if no timer is needed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let config = &self.config;
        let write_deadline = self.write_blocked_since().map(|t| t + config.write_timeout);
        let next_ping = || self.ping_interval().map(|time| self.last_activity + time);
        let state_deadline = match self.state {
            SessionState::Open if self.reads_paused => next_ping(),
            SessionState::Open => {
                let message_deadline = self.message_started().map(|t| t + config.message_timeout);
                let unanswered = self.unanswered_ping().zip(config.pong_timeout);
                let pong_deadline = unanswered.map(|(pinged, timeout)| pinged + timeout);
                earlier(message_deadline, pong_deadline.or_else(next_ping))
            }
            SessionState::Answering { deadline, .. } => Some(deadline),
            SessionState::Closing { deadline_start }
            | SessionState::ShuttingDown { deadline_start } => {
                Some(deadline_start + config.close_timeout)
            }
            SessionState::Closed => None,
        };
        earlier(state_deadline, write_deadline)
    }

    /// Handles the passing of time: queues a ping that is due, and closes or ends the session if a deadline has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let config = &self.config;
        let has_elapsed = |start: Instant, time| start + time <= now;
        let is_past =
            |start: Option<Instant>, time| start.is_some_and(|start| has_elapsed(start, time));
        if is_past(self.write_blocked_since(), config.write_timeout) {
            self.state = SessionState::Closed;
        }
        let is_ping_due = self
            .ping_interval()
            .is_some_and(|time| has_elapsed(self.last_activity, time));
        match self.state {
            SessionState::Open if self.reads_paused => {
                if is_ping_due {
                    // Reads are paused, so the pong is not read. A failing write of the ping still shows that the client is gone.
                    self.send_queue.push_ping(random::bits());
                    self.last_activity = now;
                }
            }
            SessionState::Open if is_past(self.message_started(), config.message_timeout) => {
                self.schedule_close(Some(CloseCode::POLICY_VIOLATION), "message takes too long");
            }
            SessionState::Open
                if config
                    .pong_timeout
                    .is_some_and(|timeout| is_past(self.unanswered_ping(), timeout)) =>
            {
                let code = self.config.close_codes.pong_timeout;
                self.schedule_close(code, "no pong");
            }
            SessionState::Open => {
                if self.unanswered_ping().is_none() && is_ping_due {
                    self.send_queue.push_ping(random::bits());
                    match config.pong_timeout {
                        Some(_) => {
                            self.rarely_used.get_or_insert_default().unanswered_ping = Some(now);
                        }
                        // The next ping is due after another interval.
                        None => self.last_activity = now,
                    }
                }
            }
            SessionState::Closing { deadline_start }
            | SessionState::ShuttingDown { deadline_start } => {
                if has_elapsed(deadline_start, config.close_timeout) {
                    self.state = SessionState::Closed;
                }
            }
            // `apply_pending_close` answers the close frame, after the items of the round.
            SessionState::Answering { .. } | SessionState::Closed => {}
        }
    }

    // Methods for flow control.

    /// Pauses reads until [`resume_reads`](Self::resume_reads), because the client's messages are not being consumed. While reads are
    /// paused, the client is pinged, but the deadlines for its pongs and messages do not run.
    pub fn pause_reads(&mut self) {
        self.reads_paused = true;
    }

    /// Whether reads are paused: [`pause_reads`](Self::pause_reads) was called, and [`resume_reads`](Self::resume_reads) was not.
    #[inline]
    pub fn reads_paused(&self) -> bool {
        self.reads_paused
    }

    /// Resumes reads after [`pause_reads`](Self::pause_reads). The ping interval and the deadline of an incomplete message start anew.
    pub fn resume_reads(&mut self, now: impl FnOnce() -> Instant) {
        if std::mem::take(&mut self.reads_paused) {
            let now = now();
            self.last_activity = now;
            self.change_rarely_used(|rarely_used| {
                rarely_used.unanswered_ping = None;
                rarely_used.message_started = rarely_used.message_started.and(Some(now));
            });
        }
    }
}

impl RarelyUsedState {
    fn is_empty(&self) -> bool {
        self.unanswered_ping.is_none()
            && self.message_started.is_none()
            && self.write_blocked_since.is_none()
            && self.pending_close.is_none()
            && self.client_close.is_none()
    }
}

/// Returns a ping interval in milliseconds, rounded up: at least one millisecond, and at most [`MAX_TIMEOUT`].
fn whole_milliseconds(interval: Duration) -> NonZero<u32> {
    let rounded_up = interval.min(MAX_TIMEOUT) + Duration::from_nanos(999_999);
    let milliseconds = u32::try_from(rounded_up.as_millis()).unwrap_or(u32::MAX);
    NonZero::new(milliseconds).unwrap_or(NonZero::<u32>::MIN)
}

/// Returns the earlier of two times. `None` means never.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(feature = "deflate")]
fn inflate_message(compressed: &[u8], max_len: usize) -> Result<Vec<u8>, DecodeError> {
    deflate::inflate(compressed, max_len).map_err(|error| match error {
        InflateError::TooBig => DecodeError::MESSAGE_TOO_BIG,
        InflateError::Invalid => DecodeError {
            close_code: CloseCode::INVALID_PAYLOAD,
            reason: "not compressed as agreed",
        },
    })
}

/// Returns an error. Without the feature `deflate` this function is never called, because the decoder refuses compressed messages.
#[cfg(not(feature = "deflate"))]
fn inflate_message(_: &[u8], _: usize) -> Result<Vec<u8>, DecodeError> {
    Err(DecodeError::protocol("compression was not agreed on"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::Event,
        websocket::{CloseCodes, MessageFormat},
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// A session with a clock that only the test advances.
    struct SessionFixture {
        session: Session,
        now: Instant,
    }

    impl SessionFixture {
        fn new() -> Self {
            Self::with_ping_interval(Some(25 * SECOND))
        }

        fn with_ping_interval(ping_interval: Option<Duration>) -> Self {
            let encoder = FrameEncoder::new(MessageFormat::Plain);
            Self::with_encoder(encoder, ping_interval)
        }

        fn with_encoder(encoder: FrameEncoder, ping_interval: Option<Duration>) -> Self {
            Self::with_all(SessionConfig::new(), encoder, ping_interval)
        }

        fn with_config(config: SessionConfig) -> Self {
            let encoder = FrameEncoder::new(MessageFormat::Plain);
            Self::with_all(config, encoder, Some(25 * SECOND))
        }

        fn with_all(
            config: SessionConfig,
            encoder: FrameEncoder,
            ping_interval: Option<Duration>,
        ) -> Self {
            let now = Instant::now();
            let session = Session::new(Arc::new(config), encoder, ping_interval, now);
            Self { session, now }
        }

        fn advance(&mut self, time: Duration) {
            self.now += time;
            self.session.handle_timeout(self.now);
            self.apply_pending_close();
        }

        fn apply_pending_close(&mut self) {
            let now = self.now;
            self.session.apply_pending_close(|| now);
        }

        fn handle_input(&mut self, mut bytes: &[u8]) -> Option<Payload> {
            let message = self.session.handle_input(&mut bytes, false, self.now);
            self.apply_pending_close();
            message
        }

        fn handle_item(&mut self, item: Option<Item>) {
            let now = self.now;
            self.session.handle_item(item.map(Ok), || now).unwrap();
        }

        /// Passes an event that has a clone to the session, as a channel does.
        fn send_text(&mut self, text: &str) {
            let event = Event::text(text);
            self.handle_item(Some(Item::Event(event.clone())));
            drop(event);
        }

        /// Passes an event without clones to the session.
        fn send_unshared(&mut self, event: Event) {
            self.handle_item(Some(Item::Event(event)));
        }

        fn handle_write_blocked(&mut self) {
            let now = self.now;
            self.session.handle_write_blocked(|| now);
        }

        /// Writes at most `max_len` bytes, and returns them.
        fn write(&mut self, max_len: usize) -> Vec<u8> {
            let mut written = Vec::new();
            for slice in self.session.poll_transmit().take(8) {
                written.extend_from_slice(slice);
            }
            written.truncate(max_len);
            let now = self.now;
            self.session.handle_written(written.len(), || now);
            written
        }

        fn write_all(&mut self) -> Vec<u8> {
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

    /// A client's frame, with a mask of zeros.
    fn client_frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
        let header = [first_byte, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        [&header, payload].concat()
    }

    #[test]
    fn silent_client_is_pinged_then_disconnected() {
        let mut fixture = SessionFixture::new();
        let ping_time = fixture.now + 25 * SECOND;
        assert_eq!(fixture.session.poll_timeout(), Some(ping_time));
        fixture.advance(24 * SECOND);
        assert!(fixture.write_all().is_empty());
        fixture.advance(SECOND);
        assert_eq!(fixture.write_all()[..2], [0x89, 8]);
        let pong_time = fixture.now + 20 * SECOND;
        assert_eq!(fixture.session.poll_timeout(), Some(pong_time));
        fixture.advance(20 * SECOND);
        assert_eq!(fixture.write_all(), b"\x88\x09\x0b\xc4no pong");
        assert!(fixture.session.wants_shutdown());
        fixture.advance(10 * SECOND);
        assert!(fixture.session.is_closed());
        assert_eq!(fixture.session.poll_timeout(), None);
    }

    #[test]
    fn pings_repeat_without_a_pong_deadline() {
        let mut fixture = SessionFixture::with_config(SessionConfig::new().pong_timeout(None));
        for _ in 0..100 {
            let ping_time = fixture.now + 25 * SECOND;
            assert_eq!(fixture.session.poll_timeout(), Some(ping_time));
            fixture.advance(25 * SECOND);
            let written = fixture.write_all();
            assert_eq!((written.len(), &written[..2]), (10, &[0x89, 8][..]));
        }
        assert!(fixture.session.is_open());
    }

    #[test]
    fn unwritten_pings_are_bounded() {
        let config = SessionConfig::new()
            .pong_timeout(None)
            .write_timeout(MAX_TIMEOUT);
        let mut fixture = SessionFixture::with_config(config);
        fixture.handle_write_blocked();
        for _ in 0..1000 {
            fixture.advance(25 * SECOND);
        }
        assert!(fixture.write_all().len() <= 4096 + 10);
    }

    #[test]
    fn close_without_answer_shuts_down_at_once() {
        let mut fixture = SessionFixture::with_config(SessionConfig::new().close_without_answer());
        fixture.send_text("last");
        fixture.handle_item(Some(Item::Finished));
        assert!(fixture.session.wants_shutdown());
        assert_eq!(fixture.write_all(), b"\x81\x04last\x88\x02\x03\xe8");
        fixture.handle_input(&client_frame(0x88, b"\x03\xe8"));
        assert!(fixture.write_all().is_empty());
        fixture.advance(9 * SECOND);
        assert!(!fixture.session.is_closed());
        fixture.advance(SECOND);
        assert!(fixture.session.is_closed());
    }

    #[test]
    fn separate_messages_have_a_write_each() {
        let config = SessionConfig::new().write_messages_separately();
        let encoder = FrameEncoder::new(MessageFormat::Json);
        let mut fixture = SessionFixture::with_all(config, encoder, None);
        fixture.send_text("one");
        fixture.send_unshared(Event::text("two"));
        fixture.handle_input(&client_frame(0x89, b"ping"));
        fixture.handle_item(Some(Item::Finished));
        let expected: [&[u8]; 5] = [
            b"\x8a\x04ping",
            b"\x81\x0e{\"data\":\"one\"}",
            b"\x81\x0e{\"data\":\"two\"}",
            b"\x81\x2a{\"id\":\"~finished\",\"end\":{\"finished\":true}}",
            b"\x88\x02\x03\xe8",
        ];
        for frame in expected {
            assert_eq!(fixture.write(usize::MAX), frame);
        }
        assert!(fixture.write(usize::MAX).is_empty());
    }

    #[test]
    fn any_input_answers_a_ping() {
        let mut fixture = SessionFixture::new();
        fixture.advance(25 * SECOND);
        fixture.write_all();
        fixture.advance(19 * SECOND);
        fixture.handle_input(&client_frame(0x8a, b"anything")[..3]);
        let ping_time = fixture.now + 25 * SECOND;
        assert_eq!(fixture.session.poll_timeout(), Some(ping_time));
        fixture.advance(19 * SECOND);
        assert!(fixture.session.is_open());
    }

    #[test]
    fn ping_interval_is_at_most_30_days() {
        let mut fixture = SessionFixture::with_ping_interval(Some(Duration::MAX));
        let after_30_days = fixture.now + MAX_TIMEOUT;
        assert_eq!(fixture.session.poll_timeout(), Some(after_30_days));
        fixture.session.handle_timeout(after_30_days);
    }

    #[test]
    fn idle_session_without_pings_needs_no_timer() {
        let fixture = SessionFixture::with_ping_interval(None);
        assert_eq!(fixture.session.poll_timeout(), None);
    }

    #[test]
    fn paused_reads_suspend_the_pong_deadline() {
        let mut fixture = SessionFixture::new();
        fixture.advance(25 * SECOND);
        fixture.write_all();
        fixture.session.pause_reads();
        for _ in 0..10 {
            fixture.advance(25 * SECOND);
            assert_eq!(fixture.write_all()[..2], [0x89, 8]);
        }
        assert!(fixture.session.is_open());
        let now = fixture.now;
        fixture.session.resume_reads(|| now);
        let ping_time = fixture.now + 25 * SECOND;
        assert_eq!(fixture.session.poll_timeout(), Some(ping_time));
    }

    #[test]
    fn write_deadline_restarts_with_each_written_byte() {
        let mut fixture = SessionFixture::new();
        fixture.send_text("event");
        fixture.handle_write_blocked();
        fixture.advance(20 * SECOND);
        fixture.handle_input(&client_frame(0x8a, b""));
        fixture.write(1);
        fixture.handle_write_blocked();
        fixture.advance(20 * SECOND);
        fixture.handle_input(&client_frame(0x8a, b""));
        assert!(fixture.session.is_open());
        fixture.advance(10 * SECOND);
        assert!(fixture.session.is_closed());
    }

    #[test]
    fn violation_is_pending_until_the_close_is_applied() {
        let mut fixture = SessionFixture::new();
        let close = client_frame(0x88, b"\x03\xe8");
        let (unmasked, reserved) = (b"\x81\x00", client_frame(0x83, b""));
        for (bytes, code) in [
            (&close[..], None),
            (&unmasked[..], Some(1002)),
            (&reserved, Some(1002)),
        ] {
            let mut session = SessionFixture::new().session;
            let now = fixture.now;
            session.handle_input(&mut &bytes[..], false, now);
            let violation = session.pending_violation();
            assert_eq!(violation.map(|(code, _)| code.get()), code);
            session.apply_pending_close(|| now);
            assert_eq!(session.pending_violation(), None);
        }
        fixture.advance(25 * SECOND);
        fixture.session.handle_timeout(fixture.now + 20 * SECOND);
        let violation = Some((CloseCode::PONG_TIMEOUT, "no pong"));
        assert_eq!(fixture.session.pending_violation(), violation);
    }

    #[test]
    fn slow_message_is_refused_at_its_deadline() {
        let mut fixture = SessionFixture::new();
        fixture.handle_input(&client_frame(0x01, b"begins"));
        for _ in 0..5 {
            fixture.advance(10 * SECOND);
            fixture.handle_input(&client_frame(0x00, b"goes on"));
        }
        assert!(fixture.session.is_open());
        fixture.advance(10 * SECOND);
        let close = b"\x03\xf0message takes too long";
        assert!(fixture.write_all().ends_with(close));
    }

    #[test]
    fn message_deadline_restarts_with_each_message() {
        let mut fixture = SessionFixture::new();
        let frame = client_frame(0x81, b"dropped");
        fixture.handle_input(&frame[..3]);
        for _ in 0..10 {
            fixture.advance(10 * SECOND);
            fixture.handle_input(&[&frame[3..], &frame[..3]].concat());
        }
        assert!(fixture.session.is_open());
        fixture.advance(60 * SECOND);
        let close = b"\x03\xf0message takes too long";
        assert!(fixture.write_all().ends_with(close));
    }

    #[test]
    fn close_deadline_restarts_with_each_write() {
        let mut fixture = SessionFixture::new();
        fixture.send_text(&"x".repeat(100));
        fixture.handle_item(None);
        for _ in 0..20 {
            fixture.advance(9 * SECOND);
            assert_eq!(fixture.write(5).len(), 5);
        }
        assert!(fixture.write_all().ends_with(b"x\x88\x02\x0b\xb8"));
        fixture.advance(9 * SECOND);
        assert!(!fixture.session.is_closed());
        fixture.advance(SECOND);
        assert!(fixture.session.is_closed());
    }

    #[test]
    fn slow_reader_is_not_expected_to_answer_pings() {
        let mut fixture = SessionFixture::new();
        fixture.send_text(&"x".repeat(5000));
        for _ in 0..20 {
            fixture.handle_write_blocked();
            fixture.advance(25 * SECOND);
            fixture.write(1);
        }
        assert!(fixture.session.is_open());
        fixture.write_all();
        fixture.advance(25 * SECOND);
        fixture.write_all();
        fixture.advance(20 * SECOND);
        assert!(fixture.write_all().ends_with(b"\x0b\xc4no pong"));
    }

    #[test]
    fn pong_overtakes_messages_but_splits_none() {
        let mut fixture = SessionFixture::new();
        let text = "x".repeat(5000);
        fixture.send_text(&text);
        fixture.send_text(&text);
        let started = fixture.write(1000);
        fixture.handle_input(&client_frame(0x89, b"now"));
        let written = [started, fixture.write_all()].concat();
        let frame_len = 4 + text.len();
        assert_eq!(written[frame_len..frame_len + 5], *b"\x8a\x03now");
        assert_eq!(written.len(), 2 * frame_len + 5);
    }

    /// Returns an event of 20 000 bytes, whose payload is not copied, and its frame.
    fn uncopied_event() -> (Event, Vec<u8>) {
        let text = "x".repeat(20_000);
        let frame = [b"\x81\x7e\x4e\x20", text.as_bytes()].concat();
        (Event::text(text), frame)
    }

    #[test]
    fn pong_never_splits_header_from_payload() {
        for started_len in [0, 1, 5, 6, 8, 9, 10, 11, 20_008, 20_009] {
            let mut fixture = SessionFixture::new();
            fixture.send_text("one");
            let (event, uncopied_frame) = uncopied_event();
            fixture.send_unshared(event);
            fixture.send_text("two");
            let started = fixture.write(started_len);
            fixture.handle_input(&client_frame(0x89, b"now"));
            fixture.write(0);
            let written = [started, fixture.write_all()].concat();
            let (first, last, pong) = (b"\x81\x03one", b"\x81\x03two", b"\x8a\x03now");
            let expected = match started_len {
                0 => [&pong[..], first, &uncopied_frame, last].concat(),
                1..=5 => [&first[..], pong, &uncopied_frame, last].concat(),
                _ => [&first[..], &uncopied_frame, pong, last].concat(),
            };
            assert!(written == expected, "{started_len}");
            assert!(fixture.session.send_queue.is_unallocated());
        }
    }

    #[test]
    fn started_frame_is_finished_before_the_close() {
        for (started_len, frames) in [(0, 0), (3, 1), (4, 1), (5, 1), (20_004, 1), (20_005, 2)] {
            let mut fixture = SessionFixture::new();
            let (_, uncopied_frame) = uncopied_event();
            for _ in 0..3 {
                fixture.send_unshared(uncopied_event().0);
            }
            let started = fixture.write(started_len);
            fixture.handle_input(&client_frame(0x88, b"\x03\xe8"));
            let written = [started, fixture.write_all()].concat();
            let expected = [&uncopied_frame.repeat(frames)[..], b"\x88\x02\x03\xe8"].concat();
            assert!(written == expected, "{started_len}");
        }
    }

    #[test]
    fn large_unshared_payload_is_not_copied() {
        let mut fixture = SessionFixture::new();
        let payload = bytes::Bytes::from(vec![b'x'; 20_000]);
        fixture.send_unshared(Event::binary(payload.clone()));
        let slices: Vec<&[u8]> = fixture.session.poll_transmit().collect();
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[1].as_ptr(), payload.as_ptr());
    }

    #[test]
    fn waiting_pongs_are_bounded() {
        let mut fixture = SessionFixture::new();
        fixture.send_text("stalled");
        fixture.write(1);
        for n in 0..900_u32 {
            fixture.handle_input(&client_frame(0x89, &[n as u8; 125]));
        }
        let written = fixture.write_all();
        assert!(written.len() < 5 * 1024, "{}", written.len());
        assert!(written.ends_with(&[899_u32 as u8; 125]));
    }

    #[test]
    fn closing_session_sends_nothing_more() {
        let mut fixture = SessionFixture::new();
        fixture.send_text("last");
        fixture.handle_item(None);
        fixture.handle_input(&client_frame(0x89, b"ping"));
        assert_eq!(fixture.write_all(), b"\x81\x04last\x88\x02\x0b\xb8");
        assert!(!fixture.session.wants_item() && !fixture.session.wants_shutdown());
        fixture.handle_input(&client_frame(0x88, b"\x0b\xb8"));
        assert!(fixture.session.wants_shutdown() && fixture.write_all().is_empty());
    }

    #[test]
    fn close_reply_discards_unstarted_messages() {
        let mut fixture = SessionFixture::new();
        fixture.send_text(&"x".repeat(5000));
        fixture.send_text("never sent");
        fixture.write(10);
        fixture.handle_input(&client_frame(0x88, b"\x03\xe8"));
        let written = fixture.write_all();
        assert_eq!(written.len(), 4 + 5000 - 10 + 4);
        assert!(written.ends_with(b"x\x88\x02\x03\xe8"));
    }

    #[test]
    fn items_of_the_round_precede_the_close_reply() {
        let mut fixture = SessionFixture::new();
        let now = fixture.now;
        let close = client_frame(0x88, b"\x03\xe8");
        fixture.session.handle_input(&mut &close[..], false, now);
        assert!(fixture.session.wants_item());
        fixture.send_text("answer");
        fixture.apply_pending_close();
        assert!(fixture.session.wants_shutdown());
        assert_eq!(fixture.write_all(), b"\x81\x06answer\x88\x02\x03\xe8");
    }

    #[test]
    fn source_may_answer_until_the_deadline() {
        let config = SessionConfig::new().answer_timeout(SECOND);
        for ends_early in [true, false] {
            let mut fixture = SessionFixture::with_config(config.clone());
            fixture.send_text("queued");
            fixture.handle_input(&client_frame(0x88, b"\x0f\xa1bye"));
            let close = fixture.session.take_client_close().unwrap();
            assert_eq!(close.reason(), "bye");
            assert_eq!(fixture.session.take_client_close(), None);
            assert!(fixture.session.wants_item() && !fixture.session.is_open());
            assert_eq!(fixture.write_all(), b"\x81\x06queued");
            let deadline = fixture.now + SECOND;
            assert_eq!(fixture.session.poll_timeout(), Some(deadline));
            fixture.handle_input(&client_frame(0x89, b"ignored"));
            fixture.send_text("answer");
            match ends_early {
                true => fixture.handle_item(None),
                false => fixture.advance(SECOND),
            }
            assert!(!fixture.session.accepts_items() && fixture.session.wants_shutdown());
            let expected = b"\x81\x06answer\x88\x02\x0f\xa1";
            assert_eq!(fixture.write_all(), expected);
        }
    }

    #[test]
    fn source_without_close_code_is_cut_after_its_items() {
        let codes = CloseCodes::new().ended(None);
        let config = SessionConfig::new().close_codes(codes);
        let mut fixture = SessionFixture::with_config(config);
        fixture.send_text("last");
        fixture.handle_item(None);
        assert!(fixture.session.wants_shutdown());
        assert_eq!(fixture.write_all(), b"\x81\x04last");
        fixture.advance(10 * SECOND);
        assert!(fixture.session.is_closed());
    }

    #[test]
    fn flood_is_refused_and_steady_pings_are_not() {
        let mut fixture = SessionFixture::new();
        for _ in 0..10 {
            for _ in 0..MAX_UNSOLICITED_FRAMES_PER_SECOND {
                fixture.handle_input(&client_frame(0x89, b""));
            }
            fixture.write_all();
            fixture.now += SECOND;
        }
        assert!(fixture.session.is_open());
        for _ in 0..=MAX_UNSOLICITED_FRAMES_PER_SECOND {
            fixture.handle_input(&client_frame(0x89, b""));
        }
        assert!(fixture.write_all().ends_with(b"\x03\xf0too many frames"));
    }

    fn deflating_encoder() -> FrameEncoder {
        let encoder = FrameEncoder::new(MessageFormat::Plain);
        #[cfg(feature = "deflate")]
        let encoder = {
            let mut headers = http::HeaderMap::new();
            let offer = http::HeaderValue::from_static("permessage-deflate");
            headers.insert(http::header::SEC_WEBSOCKET_EXTENSIONS, offer);
            let accepted = deflate::negotiate(&headers).unwrap();
            encoder.deflate(accepted.params, 128)
        };
        encoder
    }

    #[test]
    fn sessions_write_the_same_shared_bytes() {
        let event = Event::text("x".repeat(1000));
        let pointers = |is_compressed: bool| {
            let mut pointers = Vec::new();
            for _ in 0..10 {
                let encoder = match is_compressed {
                    true => deflating_encoder(),
                    false => FrameEncoder::new(MessageFormat::Plain),
                };
                let mut fixture = SessionFixture::with_encoder(encoder, None);
                fixture.handle_item(Some(Item::Event(event.clone())));
                let slices: Vec<&[u8]> = fixture.session.poll_transmit().collect();
                assert_eq!(slices.len(), 1);
                let has_compressed_bit = slices[0][0] & 0x40 != 0;
                assert_eq!(has_compressed_bit, is_compressed);
                pointers.push(slices[0].as_ptr());
            }
            pointers
        };
        for is_compressed in [false, cfg!(feature = "deflate")] {
            let pointers = pointers(is_compressed);
            assert!(pointers.iter().all(|pointer| *pointer == pointers[0]));
        }
    }

    #[test]
    fn idle_session_is_small_and_unallocated() {
        assert!(size_of::<Session>() <= 288, "{}", size_of::<Session>());
        let mut fixture = SessionFixture::new();
        fixture.send_text("event");
        fixture.handle_input(&client_frame(0x89, b"ping"));
        fixture.write_all();
        assert!(fixture.session.send_queue.is_unallocated());
        assert!(fixture.session.rarely_used.is_none());
    }
}
