//! Loom tests that wake connections and logs while an event loop takes them out of its queue, in every order of the steps.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use loom::{future::block_on, model, thread};
use tokio::time::Instant;

use super::{
    ConnectionPoll, DrivenConnection,
    connection_waker::ConnectionWaker,
    log_group::LogGroup,
    ready_queue::{NewConnection, ReadyEntry, ReadyQueue, TakeOutcome},
};
use crate::{
    source::WatchedLog,
    sync::{AtomicU64, Mutex, Ordering, StoreWakerOutcome, WaitList, WaiterKey, lock},
};

type Arc<T> = std::sync::Arc<T>;

/// The input of a test's connection: a number, and the waker of the connection.
#[derive(Default)]
struct Input {
    value: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

/// A connection that is closed when its input is 2.
struct InputConnection(Arc<Input>);

impl DrivenConnection for InputConnection {
    fn poll(&mut self, cx: &mut Context<'_>, _: Instant) -> ConnectionPoll {
        *lock(&self.0.waker) = Some(cx.waker().clone());
        if self.0.value.load(Ordering::Acquire) == 2 {
            return ConnectionPoll::Closed;
        }
        ConnectionPoll::Pending { deadline: None }
    }
}

/// Takes the next entries out of the queue, and waits for them if there are none.
fn next_entries(queue: &ReadyQueue) -> VecDeque<ReadyEntry> {
    let mut entries = VecDeque::new();
    block_on(poll_fn(|cx| {
        match queue.take_or_wait(&mut entries, cx.waker()) {
            TakeOutcome::Taken => Poll::Ready(()),
            TakeOutcome::Waiting => Poll::Pending,
        }
    }));
    entries
}

/// A lost wake-up is a deadlock, which loom reports.
#[test]
fn woken_connection_is_polled_again() {
    model(|| {
        let queue = Arc::new(ReadyQueue::new());
        let input: Arc<Input> = Arc::default();
        let connection = Box::new(InputConnection(input.clone()));
        let logs = Vec::new();
        let entry = ReadyEntry::NewConnection(Box::new(NewConnection { connection, logs }));
        assert!(queue.push(entry).is_ok());
        let writer = thread::spawn(move || {
            for value in 1..=2 {
                input.value.store(value, Ordering::Release);
                let waker = lock(&input.waker).clone();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        });
        let now = Instant::now();
        let waker = Waker::from(Arc::new(ConnectionWaker::new(7, &queue)));
        let mut connection = None;
        let mut is_closed = false;
        while !is_closed {
            for entry in next_entries(&queue) {
                match entry {
                    ReadyEntry::NewConnection(new) => connection = Some(new.connection),
                    ReadyEntry::Connection(waker) => assert_eq!(waker.on_taken(), 7),
                    _ => unreachable!("nothing else is queued"),
                }
                if let Some(connection) = &mut connection {
                    let poll = connection.poll(&mut Context::from_waker(&waker), now);
                    is_closed |= poll == ConnectionPoll::Closed;
                }
            }
        }
        writer.join().unwrap();
        queue.close();
    });
}

/// A log that has only its status, with the protocol of a [`SharedLog`](crate::source).
struct StatusLog {
    status: AtomicU64,
    wait_list: WaitList,
}

impl WatchedLog for StatusLog {
    fn status(&self) -> u64 {
        self.status.load(Ordering::Acquire)
    }

    fn register_waiter(&self) -> WaiterKey {
        self.wait_list.register(0)
    }

    fn deregister_waiter(&self, waiter: &WaiterKey) {
        self.wait_list.deregister(waiter);
    }

    fn store_waker_unless_changed(
        &self,
        waiter: &WaiterKey,
        waker: &Waker,
        status: u64,
    ) -> StoreWakerOutcome {
        self.wait_list
            .store_waker_unless(waiter, waker, || self.status() != status)
    }
}

/// The member of the group reads the log's status at each poll, and must read the last status.
#[test]
fn member_reads_last_event() {
    model(|| {
        let queue = Arc::new(ReadyQueue::new());
        let log = Arc::new(StatusLog {
            status: AtomicU64::new(0),
            wait_list: WaitList::new(1),
        });
        let mut group = LogGroup::new(log.clone(), &queue);
        group.add(7);
        let writer = thread::spawn({
            let log = log.clone();
            move || {
                for status in 1..=2 {
                    log.status.store(status, Ordering::Release);
                    log.wait_list.wake_all();
                }
            }
        });
        let mut last_read = 0;
        while last_read < 2 {
            for entry in next_entries(&queue) {
                if let ReadyEntry::Log(_) = entry {
                    group.on_taken();
                    let mut members = [0; 2];
                    while let [member, ..] = group.next_members(&mut members) {
                        assert_eq!(*member, 7);
                        last_read = log.status();
                    }
                }
            }
        }
        writer.join().unwrap();
        drop(group);
        queue.close();
    });
}
