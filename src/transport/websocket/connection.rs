//! The shell around a [`Session`]: one future that owns the socket. It holds no buffer while the connection is idle.

use std::{
    future::Future,
    io::IoSlice,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use hyper::{
    rt::{Read, ReadBuf, Write},
    upgrade::{OnUpgrade, Upgraded},
};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_push_proto::websocket::Session;

use crate::{
    error::BoxError,
    event::Item,
    source::{ClientMessageSender, MessageBatch},
    supervision::{StreamHandle, SupervisedStream},
    transport::lazy_timer::LazyTimer,
};

pin_project! {
    /// A connection from its upgrade to its end. It needs tokio's clock.
    pub(super) struct Connection<S> {
        socket: Socket,
        driver: Driver<S>,
        #[pin]
        timer: LazyTimer,
        // Keeps a guarded stream counted while the socket exists.
        handle: Option<StreamHandle>,
    }
}

enum Socket {
    /// The response that agrees to the upgrade is on its way.
    Upgrading(OnUpgrade),
    Open(Upgraded),
}

struct Driver<S> {
    session: Session,
    /// `None` once it is over: what it holds is let go at once.
    items: Option<SupervisedStream<S>>,
    message_sender: Option<ClientMessageSender>,
    /// Read, but there was no room to deliver it.
    unread: Bytes,
    /// Whether the last read took much.
    is_busy: bool,
    is_flushed: bool,
    is_shut_down: bool,
}

/// What one read takes at most: a message of the default limit and its header. It lives on the stack, where it is not free: a
/// connection on which little arrives reads at most [`LARGE`].
const READ: usize = 64 * 1024 + 14;

/// From here on to copy what follows costs more than another read.
const LARGE: usize = 4 * 1024;

/// In one write.
const SLICES: usize = 64;

/// What a socket that takes any length whole is given at most at once: HTTP/2 holds a copy until the client has taken it, and
/// only the next write shows that it did.
const WHOLE: usize = 16 * 1024;

/// Reads and writes in one go, so that a busy connection lets its neighbours run.
const ROUNDS: usize = 16;

/// Items asked for in one go.
const ITEMS: usize = 1024;

impl<S> Connection<S> {
    pub(super) fn new(
        on_upgrade: OnUpgrade,
        session: Session,
        items: SupervisedStream<S>,
        message_sender: Option<ClientMessageSender>,
    ) -> Self {
        Self {
            handle: items.handle().cloned(),
            socket: Socket::Upgrading(on_upgrade),
            driver: Driver {
                session,
                items: Some(items),
                message_sender,
                unread: Bytes::new(),
                is_busy: false,
                is_flushed: true,
                is_shut_down: false,
            },
            timer: LazyTimer::default(),
        }
    }
}

impl<S> Future for Connection<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let Socket::Upgrading(on_upgrade) = this.socket {
            match Pin::new(on_upgrade).poll(cx) {
                Poll::Ready(Ok(upgraded)) => *this.socket = Socket::Open(upgraded),
                // The client left first, or something in between dropped the response.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                // In HTTP/1.1 a response that was dropped shows only once the client has left.
                Poll::Pending => {
                    return this.timer.poll(this.driver.session.begins_by().into(), cx);
                }
            }
            this.driver.session.begin(now());
        }
        let Socket::Open(socket) = this.socket else {
            return Poll::Ready(());
        };
        loop {
            if this.driver.poll(socket, cx).is_ready() {
                return Poll::Ready(());
            }
            let Some(wakes_at) = this.driver.session.wakes_at() else {
                return Poll::Pending;
            };
            ready!(this.timer.as_mut().poll(wakes_at.into(), cx));
            this.driver.session.expire(now());
        }
    }
}

impl<S> Driver<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    /// Ready when the connection is over.
    fn poll(&mut self, socket: &mut Upgraded, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ROUNDS {
            // Each is pending where there is nothing for it to do, or a waker in place.
            let read = self.read(socket, cx);
            let sent = self.take_items(cx);
            self.session.settle(now);
            let written = self.write(socket, cx);
            if self.session.is_over() {
                return Poll::Ready(());
            }
            if !self.session.is_open() && self.items.take().is_some() {
                // What was read may have waited for room there.
                self.message_sender = None;
                continue;
            }
            // Its source may have made room, in which case nobody wakes it.
            let read_on =
                self.session.reads_paused() && self.poll_room(|it| it.poll_ready(cx)).is_ready();
            if read.is_pending() && !read_on && (sent.is_pending() || written.is_pending()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once; ready if there may be more.
    fn read(&mut self, socket: &mut Upgraded, cx: &mut Context<'_>) -> Poll<()> {
        if self.session.is_over() {
            return Poll::Pending;
        }
        if self.poll_room(|it| it.poll_ready(cx)).is_pending() {
            return Poll::Pending;
        }
        if !self.unread.is_empty() {
            let unread = std::mem::take(&mut self.unread);
            let rest = self.receive(&unread, cx);
            // The same memory: to copy it for each message would be to copy it many times.
            self.unread = unread.slice_ref(rest);
            return Poll::Ready(());
        }
        // A large message's end is the end of the read, so that what follows is neither copied nor cut.
        match self.session.missing() {
            missing @ LARGE..READ => self.read_into::<READ>(missing, socket, cx),
            LARGE.. => self.read_into::<READ>(READ, socket, cx),
            _ if self.is_busy => self.read_into::<READ>(READ, socket, cx),
            _ => self.read_into::<LARGE>(LARGE, socket, cx),
        }
    }

    /// Not into its callers: so much space on the stack costs as often as it is made.
    #[inline(never)]
    fn read_into<const SPACE: usize>(
        &mut self,
        most: usize,
        socket: &mut Upgraded,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut space = [const { MaybeUninit::<u8>::uninit() }; SPACE];
        let mut buffer = ReadBuf::uninit(&mut space[..most]);
        match ready!(Pin::new(socket).poll_read(cx, buffer.unfilled())) {
            Ok(()) if !buffer.filled().is_empty() => {
                self.is_busy = buffer.filled().len() >= LARGE;
                let rest = self.receive(buffer.filled(), cx);
                self.unread = Bytes::copy_from_slice(rest);
                Poll::Ready(())
            }
            Ok(()) | Err(_) => {
                self.session.hung_up();
                Poll::Pending
            }
        }
    }

    /// What is asked for, if there is room for another message; nothing if nobody wants one.
    fn poll_room<T>(
        &mut self,
        ask: impl FnOnce(&ClientMessageSender) -> Poll<T>,
    ) -> Poll<Option<T>> {
        let Some(message_sender) = &self.message_sender else {
            return Poll::Ready(None);
        };
        let Poll::Ready(room) = ask(message_sender) else {
            self.session.pause_reads();
            return Poll::Pending;
        };
        self.session.resume_reads(now);
        Poll::Ready(Some(room))
    }

    /// Gives back what there is no room for.
    fn receive<'a>(&mut self, mut bytes: &'a [u8], cx: &Context<'_>) -> &'a [u8] {
        let now = now();
        while !bytes.is_empty() {
            let Poll::Ready(batch) = self.poll_room(|it| it.poll_batch(cx)) else {
                break;
            };
            let mut batch = batch.flatten();
            while !bytes.is_empty() && !batch.as_ref().is_some_and(MessageBatch::is_full) {
                let message = self.session.receive(&mut bytes, batch.is_some(), now);
                if let (Some(message), Some(batch)) = (message, &mut batch) {
                    batch.push(message);
                }
            }
            if let (Some(batch), Some(message_sender)) = (batch, &self.message_sender) {
                message_sender.send(batch, cx);
            }
        }
        bytes
    }

    /// Takes what the source has, as far as there is room; ready if there may be more.
    fn take_items(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(items) = &mut self.items else {
            return Poll::Pending;
        };
        for _ in 0..ITEMS {
            if !self.session.has_room() {
                break;
            }
            let item = ready!(Pin::new(&mut *items).poll_next(cx));
            if let Some(error) = self.session.send(item, now) {
                items.report_send_error(&error.into());
            }
        }
        Poll::Ready(())
    }

    /// Writes all there is; pending if the socket does not take it.
    fn write(&mut self, socket: &mut Upgraded, cx: &mut Context<'_>) -> Poll<()> {
        let written = self.poll_write(socket, cx);
        match written {
            Poll::Pending => self.session.stall(now),
            Poll::Ready(Ok(())) => self.session.flows(),
            Poll::Ready(Err(_)) => self.session.hung_up(),
        }
        written.map(|_| ())
    }

    fn poll_write(
        &mut self,
        socket: &mut Upgraded,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut socket = Pin::new(socket);
        loop {
            match ready!(write_some(socket.as_mut(), &mut self.session, cx))? {
                None => break,
                Some(0) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Some(bytes) => self.session.wrote(bytes, now),
            }
            self.is_flushed = false;
        }
        if !self.is_flushed {
            ready!(socket.as_mut().poll_flush(cx))?;
            self.is_flushed = true;
        }
        if self.session.is_leaving() && !self.is_shut_down {
            ready!(socket.as_mut().poll_shutdown(cx))?;
            self.is_shut_down = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// The time by tokio's clock, which tests can stop.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Writes as much as goes into one write; `None` if there is nothing.
fn write_some(
    socket: Pin<&mut Upgraded>,
    session: &mut Session,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<Option<usize>>> {
    let is_vectored = socket.is_write_vectored();
    let written = match session.slice() {
        Some([]) => return Poll::Ready(Ok(None)),
        Some(slice) if is_vectored => socket.poll_write(cx, slice),
        _ => {
            let mut vector = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (place, slice) in vector.iter_mut().zip(session.slices()) {
                *place = IoSlice::new(slice);
                count += 1;
            }
            match &vector[..count] {
                [] => return Poll::Ready(Ok(None)),
                slices if is_vectored => socket.poll_write_vectored(cx, slices),
                [first, ..] => socket.poll_write(cx, &first[..first.len().min(WHOLE)]),
            }
        }
    };
    written.map_ok(Some)
}
