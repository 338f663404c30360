use std::{fmt, time::Duration};

use tokio::time::Instant;

use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// The state of a task that reads a shared store, such as a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReaderState {
    /// The reader is connected, and follows the store.
    Following,
    /// The reader has lost its connection, and tries to connect. Clients stay connected, and get the events later.
    Reconnecting,
}

/// The state and the counts of a task that reads a shared store, for metrics and for the health check of a server. `E` is the error of a lost
/// connection.
///
/// No count ever decreases. The crates for brokers (`tower-push-redis`, `tower-push-nats`) return this type.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReaderStatus<E> {
    /// The state of the reader now.
    pub state: ReaderState,
    /// The time since the last answer of the store. While there are no new events, the readers of the crates for brokers get an answer every 5 s.
    pub since_answer: Duration,
    /// The error after which the reader is reconnecting.
    pub error: Option<E>,
    /// The error of the members of a hub's topics. `None` if the last read of the list and the last request of this server have succeeded. While
    /// requests fail, the hub still shows all events, and the members of this server do not reach the others. While the list cannot be read after a
    /// gap, it may have members that have left, and lack others. The reader tries again, and clients get the list with another gap.
    pub members_error: Option<E>,
    /// The number of events that were read.
    pub events_read: u64,
    /// The number of connections after the first one. A reader of NATS counts its consumers after the first one instead. A reader of Redis makes a new
    /// connection every 10 minutes, even without an error.
    pub reconnects: u64,
    /// The number of times that the reader found another store than the one that it had read: the store was deleted, created anew, or has
    /// lost events.
    pub replaced: u64,
    /// The number of times that events were removed from the store before the reader could read them.
    pub trimmed: u64,
}

impl<E> ReaderStatus<E> {
    /// Returns whether the store has answered within `max_silence`. 15 s is a good value.
    pub fn is_healthy(&self, max_silence: Duration) -> bool {
        self.since_answer <= max_silence
    }
}

/// Records the state and the counts of a task that reads a shared store. The task calls the other methods, and [`status`](Self::status) returns
/// what they have recorded.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use tower_push::source::relay::{ReaderMetrics, ReaderState};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let metrics = Arc::new(ReaderMetrics::<std::io::ErrorKind>::new());
/// metrics.add_read(3);
/// metrics.record_answer();
/// assert!(metrics.status().is_healthy(Duration::from_secs(15)));
///
/// metrics.record_error(std::io::ErrorKind::ConnectionReset);
/// let status = metrics.status();
/// assert_eq!((status.state, status.events_read), (ReaderState::Reconnecting, 3));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct ReaderMetrics<E> {
    connection: Mutex<ConnectionStatus<E>>,
    members_error: Mutex<Option<E>>,
    member_list_error: Mutex<Option<E>>,
    position: AtomicU64,
    events_read: AtomicU64,
    reconnects: AtomicU64,
    replaced: AtomicU64,
    trimmed: AtomicU64,
}

#[derive(Debug)]
struct ConnectionStatus<E> {
    state: ReaderState,
    answered_at: Instant,
    error: Option<E>,
}

impl<E> ReaderMetrics<E> {
    /// Creates the metrics of a reader that is connected, and has just got an answer.
    pub fn new() -> Self {
        Self {
            connection: Mutex::new(ConnectionStatus {
                state: ReaderState::Following,
                answered_at: Instant::now(),
                error: None,
            }),
            members_error: Mutex::new(None),
            member_list_error: Mutex::new(None),
            position: AtomicU64::new(0),
            events_read: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            trimmed: AtomicU64::new(0),
        }
    }

    /// Records an answer of the store.
    pub fn record_answer(&self) {
        let answered = ConnectionStatus {
            state: ReaderState::Following,
            answered_at: Instant::now(),
            error: None,
        };
        // The old error is dropped outside of the lock.
        let _old = std::mem::replace(&mut *lock(&self.connection), answered);
    }

    /// Records that the connection is lost.
    pub fn record_error(&self, error: E) {
        let _old = {
            let mut connection = lock(&self.connection);
            connection.state = ReaderState::Reconnecting;
            connection.error.replace(error)
        };
    }

    /// Records how a request that changes the members of a hub's topics has ended: `None` if it has succeeded.
    pub fn record_members_result(&self, error: Option<E>) {
        let _old = std::mem::replace(&mut *lock(&self.members_error), error);
    }

    /// Records how a read of the members of a hub's topics has ended: `None` if it has succeeded.
    pub fn record_member_list_result(&self, error: Option<E>) {
        let _old = std::mem::replace(&mut *lock(&self.member_list_error), error);
    }

    /// Sets the position up to which the reader has read, as the store counts its events.
    pub fn set_position(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
    }

    /// Returns the position up to which the reader has read. 0 before the first call of [`set_position`](Self::set_position).
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Counts events that were read.
    pub fn add_read(&self, events: u64) {
        self.events_read.fetch_add(events, Ordering::Relaxed);
    }

    /// Counts a new connection.
    pub fn add_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that the reader has found another store than the one that it had read.
    pub fn add_replaced(&self) {
        self.replaced.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that events were removed before the reader could read them.
    pub fn add_trimmed(&self) {
        self.trimmed.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the state and the counts.
    pub fn status(&self) -> ReaderStatus<E>
    where
        E: Clone,
    {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let list_error = lock(&self.member_list_error).clone();
        let members_error = list_error.or_else(|| lock(&self.members_error).clone());
        let connection = lock(&self.connection);
        ReaderStatus {
            state: connection.state,
            since_answer: connection.answered_at.elapsed(),
            error: connection.error.clone(),
            members_error,
            events_read: count(&self.events_read),
            reconnects: count(&self.reconnects),
            replaced: count(&self.replaced),
            trimmed: count(&self.trimmed),
        }
    }
}

impl<E> Default for ReaderMetrics<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Clone + fmt::Debug> fmt::Debug for ReaderMetrics<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderMetrics")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
