//! What readers of one stream do to each other, and the stream to them, in every order that there is: `scripts/loom`.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_core::Stream;
use loom::{
    future::block_on,
    model,
    sync::{Arc, Mutex},
    thread,
};

use super::{
    EndPolicy,
    kept::Kept,
    log::{Bounds, Next},
    lot::Limits,
    token::Token,
};
use crate::{
    error::BoxError,
    event::{Event, Item},
};

/// A stream that is fed from another thread. It remembers the last waker only, as streams may.
#[derive(Clone, Default)]
struct Feed(Arc<Mutex<Fed>>);

#[derive(Default)]
struct Fed {
    events: VecDeque<u64>,
    waker: Option<Waker>,
}

impl Feed {
    fn send(&self, event: u64) {
        let waker = {
            let mut fed = self.0.lock().unwrap();
            fed.events.push_back(event);
            fed.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn kept(&self) -> Arc<Kept> {
        let limits = Limits {
            parked_for: Duration::ZERO,
            streams: 0,
            parked_bytes: 0,
            replay: Bounds {
                events: 8,
                bytes: 1 << 20,
            },
            end_policy: EndPolicy::Finish,
        };
        let stream = Box::pin(self.clone());
        Arc::new(Kept::new(Token::random(), None, &limits, stream))
    }
}

impl Stream for Feed {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut fed = self.0.lock().unwrap();
        if let Some(event) = fed.events.pop_front() {
            return Poll::Ready(Some(Ok(Item::Event(Event::text(event.to_string())))));
        }
        fed.waker = Some(cx.waker().clone());
        drop(fed);
        // Loom looks for other orders only where two threads touch the same thing: this is for one in which the stream is fed, and
        // rings, before the turn is over.
        drop(self.0.lock());
        Poll::Pending
    }
}

/// Reads so many events; a wake-up that is lost is a deadlock, which loom reports.
fn read(kept: &Kept, events: u64) -> Vec<String> {
    let place = kept.enter();
    let mut read = Vec::new();
    for at in 0..events {
        match block_on(poll_fn(|cx| kept.poll(at, &place, cx, &mut None))) {
            Next::Item(Item::Event(event)) => {
                read.push(event.payload().as_text().unwrap().to_owned());
            }
            other => panic!("{other:?}"),
        }
    }
    kept.leave(&place);
    read
}

/// Asks once, and then never again.
fn ask_and_stall(kept: &Kept) {
    let place = kept.enter();
    let waker = futures_util::task::noop_waker();
    let _ = kept.poll(0, &place, &mut Context::from_waker(&waker), &mut None);
}

#[test]
fn a_reader_that_waits_is_woken_by_the_stream() {
    model(|| {
        let feed = Feed::default();
        let kept = feed.kept();
        let reader = thread::spawn(move || read(&kept, 2));
        feed.send(1);
        feed.send(2);
        assert_eq!(reader.join().unwrap(), ["1", "2"]);
    });
}

#[test]
fn two_readers_get_everything_once() {
    let mut orders = loom::model::Builder::new();
    // Three take minutes.
    orders.preemption_bound = Some(2);
    orders.check(|| {
        let feed = Feed::default();
        let kept = feed.kept();
        let other = thread::spawn({
            let kept = kept.clone();
            move || read(&kept, 1)
        });
        let feeding = thread::spawn(move || feed.send(1));
        assert_eq!(read(&kept, 1), ["1"]);
        assert_eq!(other.join().unwrap(), ["1"]);
        feeding.join().unwrap();
    });
}

#[test]
fn a_reader_that_stalls_in_its_turn_holds_no_other_up() {
    model(|| {
        let feed = Feed::default();
        let kept = feed.kept();
        let stalling = thread::spawn({
            let kept = kept.clone();
            move || ask_and_stall(&kept)
        });
        let feeding = thread::spawn(move || feed.send(1));
        assert_eq!(read(&kept, 1), ["1"]);
        stalling.join().unwrap();
        feeding.join().unwrap();
    });
}

/// The turn is let go with nothing to show for it, while another one wants it.
#[test]
fn a_reader_that_finds_the_turn_taken_gets_it_afterwards() {
    model(|| {
        let feed = Feed::default();
        let kept = feed.kept();
        let stalling = thread::spawn({
            let kept = kept.clone();
            move || ask_and_stall(&kept)
        });
        let reader = thread::spawn({
            let kept = kept.clone();
            move || read(&kept, 1)
        });
        feed.send(1);
        assert_eq!(reader.join().unwrap(), ["1"]);
        stalling.join().unwrap();
    });
}
