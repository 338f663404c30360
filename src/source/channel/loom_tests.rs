//! What publishing, waiting, closing and leaving do to each other, in every order that there is:
//! `scripts/loom`.

use std::{future::poll_fn, task::Poll, time::Duration};

use loom::{future::block_on, model, sync::Arc, thread};

use super::{
    log::{Bounds, Log, Next},
    shared::Shared,
    taken::Taken,
};
use crate::event::Event;

fn shared() -> Arc<Shared> {
    let bounds = Bounds {
        events: 8,
        bytes: 1 << 20,
        age: None,
    };
    Arc::new(Shared::new(Log::new(bounds, false), 1))
}

fn publish(shared: &Shared) {
    shared.publish(
        |number| Event::text(number.to_string()),
        None,
        Duration::ZERO,
    );
}

/// Reads until so many events came, or the end; a wake-up that is lost is a deadlock, which loom reports.
fn read(shared: &Shared, mut at: u64, events: usize) -> (Vec<String>, Next) {
    let place = shared.wait_list.register(0);
    let mut taken = Taken::default();
    let mut read = Vec::new();
    let mut next = Next::Nothing;
    while read.len() < events && next != Next::Closed {
        next = block_on(poll_fn(|cx| {
            loop {
                match shared.read(at, 1 << 20, &mut taken) {
                    Next::Nothing => {
                        if shared.wait(&place, cx.waker(), at) {
                            return Poll::Pending;
                        }
                    }
                    next => return Poll::Ready(next),
                }
            }
        }));
        if let Next::Read(number) = next {
            at = number;
        }
        read.extend(std::iter::from_fn(|| taken.pop()));
    }
    shared.wait_list.deregister(&place);
    let texts = read
        .iter()
        .map(|event| event.payload().as_text().unwrap().to_owned());
    (texts.collect(), next)
}

#[test]
fn a_reader_that_parks_is_woken_by_whoever_publishes() {
    model(|| {
        let shared = shared();
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared, 0, 2).0
        });
        publish(&shared);
        publish(&shared);
        assert_eq!(reader.join().unwrap(), ["1", "2"]);
    });
}

#[test]
fn two_publishers_make_no_hole_and_no_double() {
    model(|| {
        let shared = shared();
        let publisher = thread::spawn({
            let shared = shared.clone();
            move || publish(&shared)
        });
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared, 0, 2).0
        });
        publish(&shared);
        assert_eq!(reader.join().unwrap(), ["1", "2"]);
        publisher.join().unwrap();
    });
}

#[test]
fn who_subscribes_while_one_publishes_gets_the_event_from_the_log_or_live() {
    model(|| {
        let shared = shared();
        let publisher = thread::spawn({
            let shared = shared.clone();
            move || publish(&shared)
        });
        let last = shared.look(Duration::ZERO, Log::last);
        if last == 0 {
            assert_eq!(read(&shared, 0, 1).0, ["1"]);
        }
        publisher.join().unwrap();
    });
}

#[test]
fn a_close_wakes_who_waits_behind_the_last_event() {
    model(|| {
        let shared = shared();
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared, 0, usize::MAX)
        });
        publish(&shared);
        shared.close();
        assert_eq!(reader.join().unwrap(), (vec!["1".to_owned()], Next::Closed));
    });
}

#[test]
fn one_leaves_while_others_are_woken() {
    model(|| {
        let shared = shared();
        let leaving = thread::spawn({
            let shared = shared.clone();
            move || {
                let place = shared.wait_list.register(0);
                let waker = futures_util::task::noop_waker();
                shared.wait(&place, &waker, 0);
                shared.wait_list.deregister(&place);
            }
        });
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared, 0, 1).0
        });
        publish(&shared);
        assert_eq!(reader.join().unwrap(), ["1"]);
        leaving.join().unwrap();
    });
}
