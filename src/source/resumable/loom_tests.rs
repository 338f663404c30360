//! Loom tests that run the readers of a [`SharedStream`] and the stream itself, in every order of the steps. `scripts/loom` runs
//! these tests.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use loom::{
    future::block_on,
    model,
    sync::{Arc, Mutex},
    thread,
};

use super::{
    item_log::{ItemLogLimits, ItemLogReadOutcome},
    resumable_config::RestartPolicy,
    shared_stream::SharedStream,
    stream_token::StreamToken,
};
use crate::{
    BoxError,
    event::{Event, Item},
};

/// A stream of numbers that another thread sends. The stream keeps only the waker of the last poll, as streams may.
#[derive(Clone, Default)]
struct NumberStream(Arc<Mutex<NumberQueue>>);

#[derive(Default)]
struct NumberQueue {
    numbers: VecDeque<u64>,
    waker: Option<Waker>,
}

impl NumberStream {
    fn send(&self, number: u64) {
        let waker = {
            let mut queue = self.0.lock().unwrap();
            queue.numbers.push_back(number);
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn share(&self) -> Arc<SharedStream> {
        let limits = ItemLogLimits {
            max_entries: 8,
            max_bytes: 1 << 20,
        };
        let token = StreamToken::random();
        let stream = Box::pin(self.clone());
        let shared = SharedStream::new(token, None, limits, RestartPolicy::Never, stream);
        Arc::new(shared)
    }
}

impl Stream for NumberStream {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.0.lock().unwrap();
        if let Some(number) = queue.numbers.pop_front() {
            return Poll::Ready(Some(Ok(Item::Event(Event::text(number.to_string())))));
        }
        queue.waker = Some(cx.waker().clone());
        drop(queue);
        // Loom tries other orders only where two threads access the same object. This access lets loom run the sender, which
        // wakes the waker, before the reader that polls the stream has unlocked the stream.
        drop(self.0.lock());
        Poll::Pending
    }
}

/// Reads `count` events. A lost wake-up is a deadlock, which loom reports.
fn read(shared: &SharedStream, count: u64) -> Vec<String> {
    let reader = shared.register_reader();
    let mut texts = Vec::new();
    for position in 0..count {
        let poll = |cx: &mut Context<'_>| shared.poll_read(position, &reader, cx, &mut None);
        match block_on(poll_fn(poll)) {
            ItemLogReadOutcome::Item(Item::Event(event)) => {
                texts.push(event.payload().as_text().unwrap().to_owned());
            }
            other => panic!("{other:?}"),
        }
    }
    shared.deregister_reader(&reader);
    texts
}

/// Polls the stream once as a reader that then stalls: it neither polls again nor deregisters.
fn poll_once(shared: &SharedStream) {
    let reader = shared.register_reader();
    let waker = futures_util::task::noop_waker();
    let _ = shared.poll_read(0, &reader, &mut Context::from_waker(&waker), &mut None);
}

#[test]
fn waiting_reader_is_woken_by_stream() {
    model(|| {
        let numbers = NumberStream::default();
        let shared = numbers.share();
        let reader = thread::spawn(move || read(&shared, 2));
        numbers.send(1);
        numbers.send(2);
        assert_eq!(reader.join().unwrap(), ["1", "2"]);
    });
}

#[test]
fn two_readers_get_every_event_once() {
    let mut builder = loom::model::Builder::new();
    // With three preemptions this takes minutes.
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let numbers = NumberStream::default();
        let shared = numbers.share();
        let other = thread::spawn({
            let shared = shared.clone();
            move || read(&shared, 1)
        });
        let sender = thread::spawn(move || numbers.send(1));
        assert_eq!(read(&shared, 1), ["1"]);
        assert_eq!(other.join().unwrap(), ["1"]);
        sender.join().unwrap();
    });
}

#[test]
fn stalled_reader_holds_up_no_other() {
    model(|| {
        let numbers = NumberStream::default();
        let shared = numbers.share();
        let stalled = thread::spawn({
            let shared = shared.clone();
            move || poll_once(&shared)
        });
        let sender = thread::spawn(move || numbers.send(1));
        assert_eq!(read(&shared, 1), ["1"]);
        stalled.join().unwrap();
        sender.join().unwrap();
    });
}

/// Tests that a reader that loses the race for the stream's lock reads the event, although the other reader finds the stream
/// pending and never polls again.
#[test]
fn reader_that_lost_the_lock_gets_it_later() {
    model(|| {
        let numbers = NumberStream::default();
        let shared = numbers.share();
        let stalled = thread::spawn({
            let shared = shared.clone();
            move || poll_once(&shared)
        });
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared, 1)
        });
        numbers.send(1);
        assert_eq!(reader.join().unwrap(), ["1"]);
        stalled.join().unwrap();
    });
}
