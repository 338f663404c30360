//! Loom tests that append to a [`SharedLog`], read, wait, close and deregister in every order of the steps. `scripts/loom` runs
//! these tests.

use std::{future::poll_fn, task::Poll, time::Duration};

use loom::{future::block_on, model, sync::Arc, thread};

use super::{
    EventLog, EventLogLimits, EventLogReadOutcome, FlushTarget, FlushWindow, HeldEvents, IdIndex,
    ReadBuffer, SharedLog, shared_log::ReadRange,
};
use crate::event::{Event, Gap, GapReason};

fn limits() -> EventLogLimits {
    EventLogLimits {
        max_events: 8,
        max_bytes: 1 << 20,
        max_age: None,
    }
}

fn shared_log() -> Arc<SharedLog> {
    Arc::new(SharedLog::new(EventLog::new(limits(), false), 1))
}

fn append(log: &SharedLog) {
    let event = |position: u64| Event::text(position.to_string());
    log.append(event, None, Duration::ZERO).unwrap();
}

fn is_end(outcome: EventLogReadOutcome) -> bool {
    matches!(
        outcome,
        EventLogReadOutcome::Closed | EventLogReadOutcome::Missed
    )
}

/// Reads until it has `count` events, the log is closed, or the log no longer has the next event. A lost wake-up is a deadlock, which loom reports.
fn read(log: &SharedLog, mut position: u64, count: usize) -> (Vec<String>, EventLogReadOutcome) {
    let reader = log.register_reader(0);
    let mut buffer = ReadBuffer::default();
    let mut events = Vec::new();
    let mut last_read = EventLogReadOutcome::UpToDate;
    while events.len() < count && !is_end(last_read) {
        last_read = block_on(poll_fn(|cx| {
            let range = ReadRange {
                after: position,
                min_end_position: 0,
            };
            loop {
                match log.read(range, 1 << 20, &mut buffer) {
                    EventLogReadOutcome::UpToDate => {
                        let outcome =
                            log.store_waker_unless_readable(&reader, cx.waker(), position);
                        if outcome.is_stored() {
                            return Poll::Pending;
                        }
                    }
                    read => return Poll::Ready(read),
                }
            }
        }));
        if let EventLogReadOutcome::Events { up_to } = last_read {
            position = up_to;
        }
        events.extend(std::iter::from_fn(|| buffer.pop()));
    }
    log.deregister_reader(&reader);
    let texts = events
        .iter()
        .map(|event| event.payload().as_text().unwrap().to_owned());
    (texts.collect(), last_read)
}

#[test]
fn waiting_reader_is_woken_by_append() {
    model(|| {
        let log = shared_log();
        let reader = thread::spawn({
            let log = log.clone();
            move || read(&log, 0, 2).0
        });
        append(&log);
        append(&log);
        assert_eq!(reader.join().unwrap(), ["1", "2"]);
    });
}

#[test]
fn two_writers_leave_no_hole_and_no_duplicate() {
    model(|| {
        let log = shared_log();
        let writer = thread::spawn({
            let log = log.clone();
            move || append(&log)
        });
        let reader = thread::spawn({
            let log = log.clone();
            move || read(&log, 0, 2).0
        });
        append(&log);
        assert_eq!(reader.join().unwrap(), ["1", "2"]);
        writer.join().unwrap();
    });
}

#[test]
fn new_reader_gets_concurrent_event_exactly_once() {
    model(|| {
        let log = shared_log();
        let writer = thread::spawn({
            let log = log.clone();
            move || append(&log)
        });
        let last_position = log.inspect(Duration::ZERO, EventLog::last_position);
        if last_position == 0 {
            assert_eq!(read(&log, 0, 1).0, ["1"]);
        }
        writer.join().unwrap();
    });
}

#[test]
fn close_wakes_reader_after_last_event() {
    model(|| {
        let log = shared_log();
        let reader = thread::spawn({
            let log = log.clone();
            move || read(&log, 0, usize::MAX)
        });
        append(&log);
        log.close();
        assert_eq!(
            reader.join().unwrap(),
            (vec!["1".to_owned()], EventLogReadOutcome::Closed)
        );
    });
}

#[test]
fn leaving_reader_takes_no_wake_up_from_others() {
    model(|| {
        let log = shared_log();
        let leaving = thread::spawn({
            let log = log.clone();
            move || {
                let reader = log.register_reader(0);
                let waker = futures_util::task::noop_waker();
                let _ = log.store_waker_unless_readable(&reader, &waker, 0);
                log.deregister_reader(&reader);
            }
        });
        let reader = thread::spawn({
            let log = log.clone();
            move || read(&log, 0, 1).0
        });
        append(&log);
        assert_eq!(reader.join().unwrap(), ["1"]);
        leaving.join().unwrap();
    });
}

/// A client that is ahead of the feed waits until the log has its cursor, and then reads on. The writer appends the event of the cursor
/// and the one after it.
#[test]
fn reader_ahead_of_log_joins_at_its_cursor() {
    model(|| {
        let log = Arc::new(SharedLog::new(
            EventLog::new(limits(), false).with_id_index(Some(IdIndex::new(None, 1))),
            1,
        ));
        let writer = thread::spawn({
            let log = log.clone();
            move || {
                for id in [41, 42] {
                    let event = Event::text(id.to_string()).with_event_id(id.into());
                    log.append(|_| event, None, Duration::ZERO).unwrap();
                }
            }
        });
        let reader = log.register_reader(0);
        let position = block_on(poll_fn(|cx| {
            loop {
                let find = |log: &EventLog| {
                    let index = log.id_index().expect("the log has an index");
                    (log.last_position(), index.position_of(&41.into()))
                };
                // The position from which the reader waits is read together with the search. An upstream resume reads it before the search.
                let (last_position, found) = log.inspect(Duration::ZERO, find);
                if let Some(position) = found {
                    return Poll::Ready(position);
                }
                let outcome = log.store_waker_unless_readable(&reader, cx.waker(), last_position);
                if outcome.is_stored() {
                    return Poll::Pending;
                }
            }
        }));
        log.deregister_reader(&reader);
        assert_eq!(read(&log, position, 1).0, ["42"]);
        writer.join().unwrap();
    });
}

/// A log in a flush window, whose timer ends at any time.
struct WindowedLog(SharedLog);

impl FlushTarget for WindowedLog {
    fn flush_held(&self) {
        self.0.flush_held();
    }
}

fn windowed_log() -> std::sync::Arc<WindowedLog> {
    std::sync::Arc::new_cyclic(|this: &std::sync::Weak<WindowedLog>| {
        let max_held_events = HeldEvents {
            events: 4,
            bytes: 1 << 20,
        };
        let window = FlushWindow::new(Duration::from_secs(10), max_held_events, this.clone());
        let log = SharedLog::new(EventLog::new(limits(), false), 1);
        WindowedLog(log.with_flush_window(window))
    })
}

#[test]
fn waiting_reader_gets_event_held_back() {
    model(|| {
        let log = windowed_log();
        let reader = thread::spawn({
            let log = log.clone();
            move || read(&log.0, 0, 2).0
        });
        append(&log.0);
        append(&log.0);
        assert_eq!(reader.join().unwrap(), ["1", "2"]);
    });
}

#[test]
fn close_wakes_reader_after_event_held_back() {
    model(|| {
        let log = windowed_log();
        append(&log.0);
        append(&log.0);
        let reader = thread::spawn({
            let log = log.clone();
            move || read(&log.0, 1, usize::MAX)
        });
        log.0.close();
        assert_eq!(
            reader.join().unwrap(),
            (vec!["2".to_owned()], EventLogReadOutcome::Closed)
        );
    });
}

#[test]
fn restarted_log_wakes_waiting_reader() {
    model(|| {
        let log = shared_log();
        let writer = thread::spawn({
            let log = log.clone();
            move || log.restart_after_gap(&Gap::new(GapReason::Epoch))
        });
        let missed = read(&log, 0, 1).1;
        assert_eq!(missed, EventLogReadOutcome::Missed);
        writer.join().unwrap();
    });
}
