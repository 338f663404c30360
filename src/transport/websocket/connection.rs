//! The task of one connection: it owns the socket, and drives a [`Session`].

#[cfg(feature = "server")]
use std::{fmt, sync::Arc};
use std::{
    future::Future,
    io::IoSlice,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::{
    rt::{Read, ReadBuf, Write},
    upgrade::{OnUpgrade, Upgraded},
};
use tokio::time::Instant;
#[cfg(feature = "tracing")]
use tower_push_proto::websocket::CloseCode;
use tower_push_proto::websocket::Session;

#[cfg(feature = "tracing")]
use crate::supervision::TRACING_TARGET;
use crate::{
    event::ItemOrRun,
    event_loop::{ConnectionPoll, DedicatedTask, DrivenConnection},
    moving_deadline_timer::MovingDeadlineTimer,
    source::{ClientMessageSender, MessageBatch},
    supervision::{StreamHandle, SupervisedStream},
    transport::yield_detector::YieldDetector,
};
#[cfg(feature = "server")]
use crate::{event_loop::TakenOutput, source::EventLoopJoin};

/// The future of one connection, from its handshake to its end. If the connection belongs to a server of this crate, the future ends with the upgrade,
/// and the server drives the connection.
///
/// The tokio runtime must have its timer enabled.
pub(super) enum ConnectionTask {
    /// The response that agrees to the upgrade is on its way.
    Upgrading(UpgradingConnection),
    Upgraded(DedicatedTask<WebSocketConnection<Upgraded>>),
}

/// A connection that waits for its upgrade.
pub(super) struct UpgradingConnection {
    on_upgrade: OnUpgrade,
    /// `None` once the socket is upgraded.
    driver: Option<SessionDriver>,
    /// Boxed because a timer is large, and is dropped with the upgrade.
    timer: Pin<Box<MovingDeadlineTimer>>,
    #[cfg(feature = "server")]
    adopter: Option<WebSocketAdopter>,
}

/// An upgraded socket, with everything that drives it. While the connection is idle, it owns no buffer.
pub(crate) struct WebSocketConnection<IO> {
    socket: IO,
    // Declared last, so that a guarded stream counts as open until the socket is dropped.
    driver: SessionDriver,
}

/// Lets a server take upgraded sockets of its own connections back from hyper. Part of a request's extensions.
#[cfg(feature = "server")]
#[derive(Clone)]
pub(crate) struct WebSocketAdopter(Arc<AdoptFn>);

#[cfg(feature = "server")]
type AdoptFn = dyn Fn(Upgraded, &mut Option<SessionDriver>) -> Result<(), Upgraded> + Send + Sync;

#[cfg(feature = "server")]
impl WebSocketAdopter {
    /// `adopt` takes the socket back from hyper, takes the driver, and drives the connection from then on. It returns the socket, and leaves the
    /// driver, if the socket does not belong to a connection of the server.
    pub(crate) fn new(
        adopt: impl Fn(Upgraded, &mut Option<SessionDriver>) -> Result<(), Upgraded>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Arc::new(adopt))
    }
}

#[cfg(feature = "server")]
impl fmt::Debug for WebSocketAdopter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketAdopter").finish_non_exhaustive()
    }
}

/// Moves bytes, items and messages between a session and the socket, the source and the source's [`ClientMessages`].
///
/// [`ClientMessages`]: crate::source::ClientMessages
pub(crate) struct SessionDriver {
    session: Session,
    items: SessionItems,
    /// `None` if no source receives the client's messages.
    message_sender: Option<ClientMessageSender>,
    /// Bytes that were read from the socket, and wait because `message_sender` has no room for their messages. `None` if there are none.
    unprocessed_input: Option<Box<Bytes>>,
    /// Whether the last read returned at least [`SMALL_READ_BUFFER_LEN`] bytes.
    was_last_read_large: bool,
    is_flushed: bool,
    is_shut_down: bool,
    /// Whether the socket is one stream of an HTTP/2 connection. A socket of HTTP/2 is dropped as soon as its writing side is shut down.
    is_multiplexed: bool,
}

/// The items of a session's source.
enum SessionItems {
    Open(SupervisedStream),
    /// The session takes no more items, and the source is dropped. The handle keeps a guarded stream counted as open.
    Dropped(#[expect(dead_code, reason = "kept until it is dropped")] Option<StreamHandle>),
}

/// The length of the large read buffer, in bytes: a message of the default limit and its header. The buffer is on the stack, and
/// making it costs time, so a connection on which little arrives uses a buffer of [`SMALL_READ_BUFFER_LEN`].
const LARGE_READ_BUFFER_LEN: usize = 64 * 1024 + 14;

/// The length of the small read buffer, in bytes. 4 KiB: copying this many bytes costs about as much as another read.
const SMALL_READ_BUFFER_LEN: usize = 4 * 1024;

/// The maximum number of slices in one vectored write.
const MAX_SLICES_PER_WRITE: usize = 64;

/// The maximum length of one write to a socket without vectored writes: 16 KiB. A socket without vectored writes is a stream of HTTP/2. A
/// stream of HTTP/2 takes a write of any length, and keeps a copy until the client has read it. Only the next write shows whether the
/// client reads, so writes are short.
const MAX_UNVECTORED_WRITE_LEN: usize = 16 * 1024;

/// The maximum number of rounds in one poll, so that a busy connection lets other tasks run.
const MAX_ROUNDS_PER_POLL: usize = 16;

/// The least number of events that are taken from the source as a run. A single event is cheaper as an item.
const MIN_RUN_LEN: usize = 2;

/// The maximum number of items that are taken from the source in one round.
const MAX_ITEMS_PER_ROUND: usize = 1024;

impl ConnectionTask {
    pub(super) fn new(
        on_upgrade: OnUpgrade,
        driver: SessionDriver,
        #[cfg(feature = "server")] adopter: Option<WebSocketAdopter>,
    ) -> Self {
        Self::Upgrading(UpgradingConnection {
            on_upgrade,
            driver: Some(driver),
            timer: Box::pin(MovingDeadlineTimer::default()),
            #[cfg(feature = "server")]
            adopter,
        })
    }
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Self::Upgrading(upgrading) = this {
            let Some(connection) = ready!(upgrading.poll_upgrade(cx)) else {
                return Poll::Ready(());
            };
            *this = Self::Upgraded(DedicatedTask::new(connection));
        }
        match this {
            Self::Upgraded(task) => Pin::new(task).poll(cx),
            Self::Upgrading(_) => Poll::Pending,
        }
    }
}

impl UpgradingConnection {
    /// Waits for the upgrade. Returns `None` if the client has left, or if the server drives the connection from now on.
    fn poll_upgrade(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<WebSocketConnection<Upgraded>>> {
        let Some(driver) = &self.driver else {
            return Poll::Ready(None);
        };
        let upgraded = match Pin::new(&mut self.on_upgrade).poll(cx) {
            Poll::Ready(Ok(upgraded)) => upgraded,
            // The client has left, or a service dropped the response before it was sent.
            Poll::Ready(Err(_)) => return Poll::Ready(None),
            // HTTP/1.1 reports a dropped response only once the client has left, so this wait has a deadline.
            Poll::Pending => {
                let deadline = driver.session.upgrade_deadline();
                return (self.timer.as_mut())
                    .poll(deadline.into(), cx)
                    .map(|()| None);
            }
        };
        if let Some(driver) = &mut self.driver {
            driver.session.handle_upgraded(tokio_now());
        }
        #[cfg(feature = "server")]
        let upgraded = match &self.adopter {
            None => upgraded,
            Some(adopter) => match (adopter.0)(upgraded, &mut self.driver) {
                Ok(()) => return Poll::Ready(None),
                Err(upgraded) => upgraded,
            },
        };
        let driver = self.driver.take();
        Poll::Ready(driver.map(|driver| driver.into_connection(upgraded)))
    }
}

impl<IO: Read + Write + Unpin + Send> DrivenConnection for WebSocketConnection<IO> {
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> ConnectionPoll {
        self.poll_until_pending(None, cx, now)
    }

    #[cfg(feature = "server")]
    fn prefetch(&self) {
        std::hint::black_box(self.driver.session.wants_item());
        std::hint::black_box((self.driver.is_flushed, self.driver.message_sender.is_some()));
        if let Some(items) = self.driver.items.open_stream() {
            items.items().prefetch();
        }
    }

    #[cfg(feature = "server")]
    fn take_output(&mut self, cx: &mut Context<'_>, _now: Instant) -> TakenOutput {
        TakenOutput::Items(self.driver.poll_items(cx))
    }

    #[cfg(feature = "server")]
    fn is_lingering(&mut self) -> bool {
        let SessionDriver {
            session,
            is_flushed,
            ..
        } = &mut self.driver;
        *is_flushed && !session.accepts_items() && session.poll_transmit().next().is_none()
    }

    #[cfg(feature = "server")]
    fn write_output(
        &mut self,
        output: TakenOutput,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> ConnectionPoll {
        let polled_items = match output {
            TakenOutput::Items(items) => Some(items),
            TakenOutput::Nothing | TakenOutput::Frame(_) => None,
        };
        self.poll_until_pending(polled_items, cx, now)
    }
}

impl<IO: Read + Write + Unpin> WebSocketConnection<IO> {
    /// Polls the session, and lets it handle its timeouts. See [`SessionDriver::poll_session`].
    fn poll_until_pending(
        &mut self,
        mut polled_items: Option<Poll<()>>,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> ConnectionPoll {
        loop {
            let poll = (self.driver).poll_session(&mut self.socket, polled_items.take(), cx);
            if poll.is_ready() {
                return ConnectionPoll::Closed;
            }
            let deadline = self.driver.session.poll_timeout().map(Instant::from_std);
            if deadline.is_none_or(|deadline| deadline > now) {
                return ConnectionPoll::Pending { deadline };
            }
            self.driver.session.handle_timeout(tokio_now());
        }
    }
}

impl SessionDriver {
    pub(super) fn new(
        session: Session,
        items: SupervisedStream,
        message_sender: Option<ClientMessageSender>,
        is_multiplexed: bool,
    ) -> Self {
        Self {
            session,
            items: SessionItems::Open(items),
            message_sender,
            unprocessed_input: None,
            was_last_read_large: false,
            is_flushed: true,
            is_shut_down: false,
            is_multiplexed,
        }
    }

    /// Puts bytes that were read from the socket elsewhere before all other input. The bytes are copied, because they may be a slice of a large buffer.
    #[cfg(feature = "server")]
    pub(crate) fn set_first_input(&mut self, input: &[u8]) {
        self.keep_unprocessed(input, Bytes::copy_from_slice);
    }

    /// Prepares the source's stream for an event loop. See [`BoxItemStream::join_event_loop`](crate::source::BoxItemStream).
    ///
    /// A connection whose messages a source receives does not fit: the source is the application's code.
    #[cfg(feature = "server")]
    pub(crate) fn join_event_loop(&mut self) -> EventLoopJoin {
        match self.items.open_stream_mut() {
            Some(items) if self.message_sender.is_none() => items.items_mut().join_event_loop(),
            _ => EventLoopJoin::NeedsOwnTask,
        }
    }

    pub(crate) fn into_connection<IO>(self, socket: IO) -> WebSocketConnection<IO> {
        WebSocketConnection {
            socket,
            driver: self,
        }
    }

    /// Runs rounds of the session until nothing is ready. The poll is ready once the session is closed.
    ///
    /// `polled_items` is `None`, unless the caller has already polled the source with [`poll_items`](Self::poll_items). Then it is the result of
    /// this call, and the first round neither reads nor polls the source: the socket will wake the connection when it has input.
    fn poll_session<IO: Read + Write + Unpin>(
        &mut self,
        socket: &mut IO,
        mut polled_items: Option<Poll<()>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        for _ in 0..MAX_ROUNDS_PER_POLL {
            // Each of the three polls is pending if it has registered a waker, or has nothing to do.
            let (read, items) = match polled_items.take() {
                Some(items) => (Poll::Pending, items),
                None => {
                    let read = self.poll_read(socket, cx);
                    self.report_client_close();
                    (read, self.poll_items(cx))
                }
            };
            #[cfg(feature = "tracing")]
            self.log_violation();
            self.session.apply_pending_close(tokio_now);
            let write = self.poll_write(socket, cx);
            if self.session.is_closed() {
                return Poll::Ready(());
            }
            if !self.session.accepts_items() && self.items.drop_source() {
                // Without a sender, the input that waited for room in the sender's queue can be handled.
                self.message_sender = None;
                continue;
            }
            // The source may have made room for messages while its items were polled. A source in the same task does not wake this task when it
            // makes room.
            let can_resume_reads = self.session.reads_paused()
                && self
                    .poll_sender_or_pause_reads(|sender| sender.poll_ready(cx))
                    .is_ready();
            if read.is_pending() && !can_resume_reads && (items.is_pending() || write.is_pending())
            {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads from the socket once, and handles the input. The poll is ready if there may be more input.
    fn poll_read<IO: Read + Unpin>(&mut self, socket: &mut IO, cx: &mut Context<'_>) -> Poll<()> {
        if self.session.is_closed() {
            return Poll::Pending;
        }
        if self
            .poll_sender_or_pause_reads(|sender| sender.poll_ready(cx))
            .is_pending()
        {
            return Poll::Pending;
        }
        if let Some(input) = self.unprocessed_input.take() {
            let rest = self.handle_input(&input, cx);
            // The rest stays a slice of `input`. To copy the rest after each message would take quadratic time.
            self.keep_unprocessed(rest, |rest| input.slice_ref(rest));
            return Poll::Ready(());
        }
        // A read ends with a large frame, so that the frame after it is neither copied nor split.
        match self.session.remaining_frame_len() {
            len @ SMALL_READ_BUFFER_LEN..LARGE_READ_BUFFER_LEN => {
                self.poll_read_into::<LARGE_READ_BUFFER_LEN, IO>(len, socket, cx)
            }
            len if len >= LARGE_READ_BUFFER_LEN || self.was_last_read_large => {
                let len = LARGE_READ_BUFFER_LEN;
                self.poll_read_into::<LARGE_READ_BUFFER_LEN, IO>(len, socket, cx)
            }
            _ => {
                let len = SMALL_READ_BUFFER_LEN;
                self.poll_read_into::<SMALL_READ_BUFFER_LEN, IO>(len, socket, cx)
            }
        }
    }

    /// Reads at most `max_len` bytes into a buffer of `BUFFER_LEN` bytes on the stack.
    ///
    /// Kept out of line so that the buffer does not enlarge the caller's stack frame.
    #[inline(never)]
    fn poll_read_into<const BUFFER_LEN: usize, IO: Read + Unpin>(
        &mut self,
        max_len: usize,
        socket: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut buffer = [const { MaybeUninit::<u8>::uninit() }; BUFFER_LEN];
        let mut buffer = ReadBuf::uninit(&mut buffer[..max_len]);
        match ready!(Pin::new(socket).poll_read(cx, buffer.unfilled())) {
            Ok(()) if !buffer.filled().is_empty() => {
                self.was_last_read_large = buffer.filled().len() >= SMALL_READ_BUFFER_LEN;
                let rest = self.handle_input(buffer.filled(), cx);
                self.keep_unprocessed(rest, Bytes::copy_from_slice);
                Poll::Ready(())
            }
            Ok(()) | Err(_) => {
                self.session.handle_disconnect();
                Poll::Pending
            }
        }
    }

    /// Keeps `rest`, which `to_bytes` converts, until there is room for its messages. Keeps nothing if `rest` is empty.
    fn keep_unprocessed(&mut self, rest: &[u8], to_bytes: impl FnOnce(&[u8]) -> Bytes) {
        self.unprocessed_input = (!rest.is_empty()).then(|| Box::new(to_bytes(rest)));
    }

    /// Polls the sender of the client's messages for room in its queue, with `poll_sender`. Pauses the reads of the session while there is
    /// no room. The poll is ready with `None` if no source receives the messages.
    fn poll_sender_or_pause_reads<T>(
        &mut self,
        poll_sender: impl FnOnce(&ClientMessageSender) -> Poll<T>,
    ) -> Poll<Option<T>> {
        let Some(sender) = &self.message_sender else {
            // The sender may have been dropped while its queue was full.
            self.session.resume_reads(tokio_now);
            return Poll::Ready(None);
        };
        let Poll::Ready(room) = poll_sender(sender) else {
            self.session.pause_reads();
            return Poll::Pending;
        };
        self.session.resume_reads(tokio_now);
        Poll::Ready(Some(room))
    }

    /// Handles input as long as there is room for its messages. Returns the rest of the input.
    fn handle_input<'a>(&mut self, mut input: &'a [u8], cx: &Context<'_>) -> &'a [u8] {
        let now = tokio_now();
        while !input.is_empty() {
            let Poll::Ready(batch) =
                self.poll_sender_or_pause_reads(|sender| sender.poll_batch(cx))
            else {
                break;
            };
            // `None` if no source receives the messages.
            let mut batch = batch.flatten();
            while !input.is_empty() && !batch.as_ref().is_some_and(MessageBatch::is_full) {
                let message = self.session.handle_input(&mut input, batch.is_some(), now);
                if let (Some(message), Some(batch)) = (message, &mut batch) {
                    batch.push(message);
                }
            }
            if let (Some(batch), Some(sender)) = (batch, &self.message_sender) {
                sender.send(batch, cx);
            }
        }
        input
    }

    /// Reports the close frame by which the client has begun to close the connection, to the guard and to the source.
    fn report_client_close(&mut self) {
        let Some(frame) = self.session.take_client_close() else {
            return;
        };
        if let Some(items) = self.items.open_stream() {
            items.report_client_close(&frame);
        }
        if let Some(sender) = self.message_sender.take() {
            sender.close(frame);
        }
    }

    /// Logs why the connection is about to be closed, if the client is the cause. Many clients do not report a close code.
    #[cfg(feature = "tracing")]
    fn log_violation(&self) {
        let Some((code, reason)) = self.session.pending_violation() else {
            return;
        };
        let _entered = self
            .items
            .open_stream()
            .and_then(SupervisedStream::enter_span);
        let is_too_big = code == CloseCode::MESSAGE_TOO_BIG;
        let code = code.get();
        if is_too_big {
            tracing::warn!(target: TRACING_TARGET, code, reason, "client exceeded `max_message_size`");
        } else {
            tracing::debug!(target: TRACING_TARGET, code, reason, "client violated the protocol");
        }
    }

    /// Moves items from the source to the session as long as the session accepts items. The poll is ready if the source may have more
    /// items.
    fn poll_items(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(items) = self.items.open_stream_mut() else {
            return Poll::Pending;
        };
        let mut yields = YieldDetector::default();
        for _ in 0..MAX_ITEMS_PER_ROUND {
            if !self.session.wants_item() {
                break;
            }
            let item = match items.poll_next_run(MIN_RUN_LEN, cx) {
                Poll::Pending if yields.on_pending() => continue,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(item) => item,
            };
            yields.on_ready();
            let item = match item {
                Some(Ok(ItemOrRun::Run(run))) => {
                    items.record_events(run.events());
                    self.session.handle_run(&run);
                    continue;
                }
                Some(Ok(ItemOrRun::Item(item))) => Some(Ok(item)),
                Some(Err(error)) => Some(Err(error)),
                None => None,
            };
            if let Err(error) = self.session.handle_item(item, tokio_now) {
                items.report_send_error(&error.into());
            }
        }
        Poll::Ready(())
    }

    /// Writes all output of the session. The poll is pending if the socket does not take all of the output.
    fn poll_write<IO: Write + Unpin>(&mut self, socket: &mut IO, cx: &mut Context<'_>) -> Poll<()> {
        let result = self.poll_write_all(socket, cx);
        match result {
            Poll::Pending => self.session.handle_write_blocked(tokio_now),
            Poll::Ready(Ok(())) => self.session.handle_write_drained(),
            Poll::Ready(Err(_)) => self.session.handle_disconnect(),
        }
        result.map(|_| ())
    }

    fn poll_write_all<IO: Write + Unpin>(
        &mut self,
        socket: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut socket = Pin::new(socket);
        loop {
            match ready!(poll_write_once(socket.as_mut(), &mut self.session, cx))? {
                None => break,
                Some(0) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Some(written) => self.session.handle_written(written, tokio_now),
            }
            self.is_flushed = false;
        }
        if !self.is_flushed {
            ready!(socket.as_mut().poll_flush(cx))?;
            self.is_flushed = true;
        }
        if self.session.wants_shutdown() && !self.is_shut_down {
            ready!(socket.as_mut().poll_shutdown(cx))?;
            self.is_shut_down = true;
            if self.is_multiplexed {
                // The close frame and END_STREAM are queued, and the reset of the stream follows them in order. Only a TCP connection needs
                // to wait for the client: a socket that is closed with unread input loses the bytes in flight (RFC 6455 §7.1.1). Firefox
                // never ends its half of the stream, so a wait would last until the close timeout.
                self.session.handle_disconnect();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl SessionItems {
    fn open_stream(&self) -> Option<&SupervisedStream> {
        match self {
            Self::Open(items) => Some(items),
            Self::Dropped(_) => None,
        }
    }

    #[inline]
    fn open_stream_mut(&mut self) -> Option<&mut SupervisedStream> {
        match self {
            Self::Open(items) => Some(items),
            Self::Dropped(_) => None,
        }
    }

    /// Drops the source. Returns `false` if it was dropped before.
    fn drop_source(&mut self) -> bool {
        let Self::Open(items) = self else {
            return false;
        };
        *self = Self::Dropped(items.handle().cloned());
        true
    }
}

/// Returns the time of tokio's clock, which tests can stop.
fn tokio_now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Writes to the socket once, as many bytes as one write takes. Returns the number of written bytes, or `None` if there is nothing to
/// write.
fn poll_write_once<IO: Write>(
    socket: Pin<&mut IO>,
    session: &mut Session,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<Option<usize>>> {
    let is_vectored = socket.is_write_vectored();
    let written = match session.poll_transmit_contiguous() {
        Some([]) => return Poll::Ready(Ok(None)),
        Some(slice) if is_vectored => socket.poll_write(cx, slice),
        _ => {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES_PER_WRITE];
            let mut count = 0;
            for (io_slice, slice) in slices.iter_mut().zip(session.poll_transmit()) {
                *io_slice = IoSlice::new(slice);
                count += 1;
            }
            match &slices[..count] {
                [] => return Poll::Ready(Ok(None)),
                slices if is_vectored => socket.poll_write_vectored(cx, slices),
                [first, ..] => {
                    let len = first.len().min(MAX_UNVECTORED_WRITE_LEN);
                    socket.poll_write(cx, &first[..len])
                }
            }
        }
    };
    written.map_ok(Some)
}
