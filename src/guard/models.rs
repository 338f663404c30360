//! What starting, coming, waiting and leaving do to each other in a drain, in every order that there is: `scripts/loom`.

use std::{future::poll_fn, task::Poll, time::Duration};

use loom::{future::block_on, model, thread};

use super::drain::{Drain, DrainOutcome, DrainPlan, Seat};

fn plan() -> DrainPlan {
    DrainPlan::within(Duration::from_secs(1))
}

/// Until it is told to end; a start that is missed is a deadlock, which loom reports.
fn wait(seat: &Seat) {
    block_on(poll_fn(|cx| {
        loop {
            if seat.turn().is_some() {
                return Poll::Ready(());
            }
            if seat.wait(cx.waker()) {
                return Poll::Pending;
            }
        }
    }));
}

fn finished(drain: &Drain) -> DrainOutcome {
    block_on(drain.gone())
}

fn sum(drained: DrainOutcome) -> usize {
    drained.notified + drained.left + drained.cut
}

#[test]
fn who_comes_as_it_starts_is_refused_or_told() {
    model(|| {
        let drain = Drain::new();
        let coming = thread::spawn({
            let drain = drain.clone();
            move || {
                let seat = drain.enter();
                if let Some(seat) = &seat {
                    wait(seat);
                    seat.leave(true);
                }
                usize::from(seat.is_some())
            }
        });
        drain.start(plan());
        let drained = finished(&drain);
        assert_eq!(drained.notified, coming.join().unwrap());
        assert_eq!(drained.notified, sum(drained));
    });
}

#[test]
fn who_waits_as_it_starts_is_woken() {
    model(|| {
        let drain = Drain::new();
        let seats = [drain.enter().unwrap(), drain.enter().unwrap()];
        let waiting = seats.map(|seat| thread::spawn(move || wait(&seat)));
        drain.start(plan());
        waiting.map(|thread| thread.join().unwrap());
    });
}

#[test]
fn it_is_finished_when_the_last_is_gone_and_everyone_is_counted_once() {
    model(|| {
        let drain = Drain::new();
        let leaving = [true, false].map(|politely| {
            let seat = drain.enter().unwrap();
            thread::spawn(move || seat.leave(politely))
        });
        drain.start(plan());
        // At any time, as a deadline may be.
        let open = sum(drain.drained());
        let drained = finished(&drain);
        assert_eq!((drained.cut, sum(drained)), (0, open));
        leaving.map(|thread| thread.join().unwrap());
        assert_eq!(drain.drained(), drained);
    });
}

#[test]
fn who_leaves_at_the_deadline_is_cut_or_polite_and_not_both() {
    model(|| {
        let drain = Drain::new();
        let seat = drain.enter().unwrap();
        drain.start(plan());
        let leaving = thread::spawn(move || seat.leave(true));
        let drained = drain.drained();
        assert_eq!((sum(drained), drained.left), (1, 0));
        leaving.join().unwrap();
    });
}

#[test]
fn all_who_wait_for_the_end_hear_of_it() {
    model(|| {
        let drain = Drain::new();
        let seat = drain.enter().unwrap();
        let watching = [(); 2].map(|()| {
            let drain = drain.clone();
            thread::spawn(move || finished(&drain))
        });
        drain.start(plan());
        seat.leave(true);
        for watcher in watching {
            assert_eq!(watcher.join().unwrap().notified, 1);
        }
    });
}

#[test]
fn who_waits_for_the_end_of_nobody_hears_of_the_start() {
    model(|| {
        let drain = Drain::new();
        let watching = thread::spawn({
            let drain = drain.clone();
            move || finished(&drain)
        });
        drain.start(plan());
        assert_eq!(watching.join().unwrap(), DrainOutcome::default());
    });
}
