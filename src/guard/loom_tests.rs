//! Loom tests that run the start of a [`Drain`], and the registration, waiting and deregistration of streams, in every order.

use std::{future::poll_fn, task::Poll, time::Duration};

use loom::{future::block_on, model, thread};

use super::drain::{Drain, DrainOutcome, DrainPlan, DrainableStream};
use crate::supervision::RegisterWakerOutcome;

fn plan() -> DrainPlan {
    DrainPlan::within(Duration::from_secs(1))
}

/// Waits until the stream has an end time. A lost wake-up is a deadlock, which loom reports.
fn wait_for_ends_at(drainable: &DrainableStream) {
    block_on(poll_fn(|cx| {
        loop {
            if drainable.ends_at().is_some() {
                return Poll::Ready(());
            }
            if drainable.register_end_time_waker(cx.waker()) == RegisterWakerOutcome::Registered {
                return Poll::Pending;
            }
        }
    }));
}

fn wait_until_empty(drain: &Drain) -> DrainOutcome {
    block_on(drain.wait_until_empty())
}

fn sum(outcome: DrainOutcome) -> usize {
    outcome.notified + outcome.left + outcome.cut
}

#[test]
fn stream_registered_during_start_is_refused_or_woken() {
    model(|| {
        let drain = Drain::new();
        let stream = thread::spawn({
            let drain = drain.clone();
            move || {
                let drainable = drain.register();
                if let Some(drainable) = &drainable {
                    wait_for_ends_at(drainable);
                    drainable.deregister(true);
                }
                usize::from(drainable.is_some())
            }
        });
        drain.start(plan());
        let outcome = wait_until_empty(&drain);
        assert_eq!(outcome.notified, stream.join().unwrap());
        assert_eq!(outcome.notified, sum(outcome));
    });
}

#[test]
fn stream_waiting_during_start_is_woken() {
    model(|| {
        let drain = Drain::new();
        let drainable_streams = [drain.register().unwrap(), drain.register().unwrap()];
        let streams =
            drainable_streams.map(|drainable| thread::spawn(move || wait_for_ends_at(&drainable)));
        drain.start(plan());
        streams
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn wait_ends_with_the_last_stream_and_counts_each_once() {
    model(|| {
        let drain = Drain::new();
        let streams = [true, false].map(|was_notified| {
            let drainable = drain.register().unwrap();
            thread::spawn(move || drainable.deregister(was_notified))
        });
        drain.start(plan());
        // The deadline may pass at any time, and the outcome must then include every stream.
        let open = sum(drain.outcome());
        let outcome = wait_until_empty(&drain);
        assert_eq!((outcome.cut, sum(outcome)), (0, open));
        streams
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(drain.outcome(), outcome);
    });
}

#[test]
fn stream_closed_at_the_deadline_is_cut_or_notified() {
    model(|| {
        let drain = Drain::new();
        let drainable = drain.register().unwrap();
        drain.start(plan());
        let stream = thread::spawn(move || drainable.deregister(true));
        let outcome = drain.outcome();
        assert_eq!((sum(outcome), outcome.left), (1, 0));
        stream.join().unwrap();
    });
}

#[test]
fn all_waiters_are_woken_at_the_end() {
    model(|| {
        let drain = Drain::new();
        let drainable = drain.register().unwrap();
        let waiters = [(); 2].map(|()| {
            let drain = drain.clone();
            thread::spawn(move || wait_until_empty(&drain))
        });
        drain.start(plan());
        drainable.deregister(true);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap().notified, 1);
        }
    });
}

#[test]
fn waiter_of_an_empty_drain_is_woken_at_the_start() {
    model(|| {
        let drain = Drain::new();
        let waiter = thread::spawn({
            let drain = drain.clone();
            move || wait_until_empty(&drain)
        });
        drain.start(plan());
        assert_eq!(waiter.join().unwrap(), DrainOutcome::default());
    });
}
