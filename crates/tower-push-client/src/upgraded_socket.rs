use std::{
    future::Future,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use hyper::{
    rt::{Read, ReadBuf, Write},
    upgrade::{OnUpgrade, Upgraded},
};

use crate::{error::BoxError, message_sender::MessageReceiver, subscriber::Subscriber};

/// The socket of a WebSocket, from the response that agrees to the upgrade on.
#[derive(Debug)]
pub(crate) enum UpgradedSocket {
    Upgrading(OnUpgrade),
    Open {
        io: Upgraded,
        /// Whether bytes were written since the last flush.
        needs_flush: bool,
    },
}

/// The length of the buffer of one read, which is on the stack: 64 KiB.
const READ_BUFFER_LEN: usize = 64 * 1024;

impl UpgradedSocket {
    pub(crate) fn new<B>(response: &mut Response<B>) -> Self {
        Self::Upgrading(hyper::upgrade::on(response))
    }

    /// Writes the output of `subscriber` and the messages of the application, and reads. Returns what was read: no bytes at the end.
    pub(crate) fn poll(
        &mut self,
        subscriber: &mut Subscriber,
        mut messages: Option<&mut MessageReceiver>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, BoxError>> {
        if let Self::Upgrading(upgrade) = self {
            let io = ready!(Pin::new(upgrade).poll(cx))?;
            let needs_flush = false;
            *self = Self::Open { io, needs_flush };
        }
        let Self::Open { io, needs_flush } = self else {
            return Poll::Pending;
        };
        loop {
            while let Some(messages) = messages.as_mut().filter(|_| subscriber.wants_message()) {
                let Poll::Ready(message) = messages.poll_message(cx) else {
                    break;
                };
                subscriber.send(&message);
            }
            let output = subscriber.poll_transmit();
            if output.is_empty() {
                break;
            }
            match Pin::new(&mut *io).poll_write(cx, output)? {
                Poll::Ready(0) => return Poll::Ready(Err("the socket accepts no bytes".into())),
                Poll::Ready(written) => subscriber.handle_written(written),
                Poll::Pending => break,
            }
            *needs_flush = true;
        }
        if *needs_flush && Pin::new(&mut *io).poll_flush(cx)?.is_ready() {
            *needs_flush = false;
        }
        poll_read(io, cx)
    }
}

// Kept out of line so that the read buffer does not enlarge the caller's stack frame.
#[inline(never)]
fn poll_read(io: &mut Upgraded, cx: &mut Context<'_>) -> Poll<Result<Bytes, BoxError>> {
    let mut buffer = [const { MaybeUninit::uninit() }; READ_BUFFER_LEN];
    let mut buffer = ReadBuf::uninit(&mut buffer);
    ready!(Pin::new(io).poll_read(cx, buffer.unfilled()))?;
    Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled())))
}
