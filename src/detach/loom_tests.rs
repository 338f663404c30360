//! Loom tests that let the connection and a body that moved to another thread take the stored body in every order.

use std::{
    any::Any,
    io::IoSlice,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame};
use loom::{model, thread};

use super::{DetachCounters, DetachOffer, DetachableBody, HandOver, MovableOutputBody};
use crate::BoxError;

/// Yields `opening` once, and is then pending.
struct Opening(Option<Bytes>);

impl Body for Opening {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.0.take() {
            Some(opening) => Poll::Ready(Some(Ok(Frame::data(opening)))),
            None => Poll::Pending,
        }
    }
}

impl MovableOutputBody for Opening {
    fn take_output(self: Pin<&mut Self>) -> Option<Box<dyn Any + Send>> {
        None
    }
}

/// Returns a connection whose current response is proven to be unchanged, and the body, which is stored.
fn proven() -> (Arc<HandOver>, DetachableBody) {
    let hand_over = HandOver::new(Arc::default());
    let (mut head, ()) = Request::new(()).into_parts();
    hand_over.begin_request().insert_into(&mut head.extensions);
    let offer = DetachOffer::take_from(&mut head).expect("an offer");
    let claim = offer.claim(true).expect("a claim");
    let mut body = DetachableBody::new(Box::pin(Opening(Some(":\n".into()))), claim);
    let mut cx = Context::from_waker(Waker::noop());
    let scope = hand_over.enter_poll();
    assert!(Pin::new(&mut body).poll_frame(&mut cx).is_ready());
    assert!(Pin::new(&mut body).poll_frame(&mut cx).is_pending());
    drop(scope);
    let wire = b"HTTP/1.1 200 OK\r\n\r\n2\r\n:\n\r\n";
    hand_over.on_write(&[IoSlice::new(wire)], wire.len());
    hand_over.on_flush(false);
    (hand_over, body)
}

#[test]
fn body_polled_elsewhere_or_connection_gets_stream() {
    model(|| {
        let (hand_over, mut body) = proven();
        let elsewhere = thread::spawn(move || {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut body).poll_frame(&mut cx).is_pending());
            body.has_inner()
        });
        let is_detached = hand_over.take_detachable_body().is_some();
        assert_ne!(is_detached, elsewhere.join().unwrap());
    });
}

#[test]
fn dropped_body_leaves_nothing_behind() {
    model(|| {
        let counters: Arc<DetachCounters> = Arc::default();
        let (hand_over, body) = proven();
        let dropping = thread::spawn(move || drop(body));
        let taken = hand_over.take_detachable_body();
        dropping.join().unwrap();
        assert!(hand_over.take_detachable_body().is_none());
        drop((taken, counters));
    });
}
