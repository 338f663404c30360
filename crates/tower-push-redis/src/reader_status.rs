use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::error::Error;

/// The state of the reader of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReaderState {
    /// The reader is connected to the master, and follows the stream.
    Following,
    /// The reader has lost its connection, and tries to connect. Clients stay connected, and get the events later.
    Reconnecting,
}

/// The state and the counts of the reader of a [`RedisStream`](crate::RedisStream), for metrics and for the health check of a server.
///
/// No count ever decreases.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReaderStatus {
    /// The state of the reader now.
    pub state: ReaderState,
    /// The time since the last answer of the server. While the stream is idle, the server answers every 5 s.
    pub since_answer: Duration,
    /// The error of the last connection, if the reader is reconnecting.
    pub error: Option<Error>,
    /// Entries that were read.
    pub entries_read: u64,
    /// Connections that were made after the first one. Every 10 minutes, the reader makes a new connection.
    pub reconnects: u64,
    /// The number of times that the reader found another stream than the one that it had read: the stream was deleted, created anew, or set
    /// back by a failover.
    pub replaced: u64,
    /// The number of times that the stream was trimmed before the reader had read the entries.
    pub trimmed: u64,
}

impl ReaderStatus {
    /// Returns whether the server has answered within `max_silence`. 15 s is a good value.
    pub fn is_healthy(&self, max_silence: Duration) -> bool {
        self.since_answer <= max_silence
    }
}

/// The values of a [`ReaderStatus`], which the reader writes.
#[derive(Debug)]
pub(crate) struct ReaderMetrics {
    connection: Mutex<ConnectionStatus>,
    /// The number of entries that had been added to the stream when the reader had read all of them.
    pub(crate) entries_added: AtomicU64,
    pub(crate) entries_read: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) replaced: AtomicU64,
    pub(crate) trimmed: AtomicU64,
}

#[derive(Debug)]
struct ConnectionStatus {
    state: ReaderState,
    answered_at: Instant,
    error: Option<Error>,
}

impl ReaderMetrics {
    pub(crate) fn new() -> Self {
        Self {
            connection: Mutex::new(ConnectionStatus {
                state: ReaderState::Following,
                answered_at: Instant::now(),
                error: None,
            }),
            entries_added: AtomicU64::new(0),
            entries_read: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            trimmed: AtomicU64::new(0),
        }
    }

    pub(crate) fn record_answer(&self) {
        let mut connection = self.lock();
        connection.state = ReaderState::Following;
        connection.answered_at = Instant::now();
        connection.error = None;
    }

    pub(crate) fn record_error(&self, error: Error) {
        let mut connection = self.lock();
        connection.state = ReaderState::Reconnecting;
        connection.error = Some(error);
    }

    pub(crate) fn status(&self) -> ReaderStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let connection = self.lock();
        ReaderStatus {
            state: connection.state,
            since_answer: connection.answered_at.elapsed(),
            error: connection.error.clone(),
            entries_read: count(&self.entries_read),
            reconnects: count(&self.reconnects),
            replaced: count(&self.replaced),
            trimmed: count(&self.trimmed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionStatus> {
        // No code panics while it holds the lock.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
