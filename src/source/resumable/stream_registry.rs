use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    resumable_config::ResumableConfig,
    resumable_counts::ResumableCounts,
    shared_stream::{BoxStream, SharedStream},
    stream_token::StreamToken,
};
use crate::{
    event::{EventId, GapReason},
    sync::{Mutex, MutexGuard, lock},
};

/// All streams of one [`Resumable`](super::Resumable): those that have readers, and those that are parked.
pub(super) struct StreamRegistry {
    config: ResumableConfig,
    state: Mutex<RegistryState>,
}

#[derive(Default)]
struct RegistryState {
    streams: HashMap<StreamToken, RegisteredStream>,
    /// The parked streams. The keys are sequence numbers: the first entry was parked first and expires first.
    parked: BTreeMap<u64, ParkingRecord>,
    /// The key in `parked` that the next parked stream gets.
    next_parked_key: u64,
    /// Sum of [`ParkingRecord::memory_len`].
    parked_bytes: usize,
    /// The task that drops streams that were parked for too long. The task runs while a stream is parked.
    expiry_task: Option<JoinHandle<()>>,
    resumed: u64,
    parked_too_long: u64,
    evicted: u64,
}

struct RegisteredStream {
    stream: Arc<SharedStream>,
    /// The number of [`StreamLease`]s of the stream.
    readers: usize,
    /// The stream's key in [`RegistryState::parked`] while it has no readers.
    parked_key: Option<u64>,
}

/// The record of a parked stream: the time at which it was parked, the token under which `streams` holds it, and the bytes that count toward
/// the limit.
struct ParkingRecord {
    parked_at: Instant,
    token: StreamToken,
    /// Bytes in the stream's log. The log does not change while the stream is parked.
    memory_len: usize,
}

/// A reader's right to read a stream of a [`StreamRegistry`]. The stream is parked when its last lease is dropped.
pub(super) struct StreamLease {
    registry: Arc<StreamRegistry>,
    stream: Arc<SharedStream>,
}

/// A stream that a client resumes.
pub(super) struct LeasedStream {
    pub(super) lease: StreamLease,
    /// The position of the client's cursor in the stream's log.
    pub(super) position: u64,
}

impl StreamRegistry {
    pub(super) fn new(config: ResumableConfig) -> Self {
        Self {
            config,
            state: Mutex::default(),
        }
    }

    /// Adds a stream, and returns the lease of its first reader.
    pub(super) fn insert(
        self: &Arc<Self>,
        stream: BoxStream,
        owner: Option<Box<str>>,
    ) -> StreamLease {
        let token = StreamToken::random();
        let ResumableConfig {
            log_limits,
            restart_policy,
            ..
        } = self.config;
        let stream = SharedStream::new(token, owner, log_limits, restart_policy, stream);
        let stream = Arc::new(stream);
        let registered = RegisteredStream {
            stream: stream.clone(),
            readers: 1,
            parked_key: None,
        };
        self.with_current_state(|state| state.streams.insert(token, registered));
        self.lease(stream)
    }

    /// Leases the stream that a cursor belongs to.
    ///
    /// # Errors
    /// Returns the reason for the client's gap if the registry does not have the stream, or if the stream has another owner.
    pub(super) fn lease_by_cursor(
        self: &Arc<Self>,
        cursor: &EventId,
        owner: Option<&str>,
    ) -> Result<LeasedStream, GapReason> {
        let (token, position) = StreamToken::split(cursor).ok_or(GapReason::Epoch)?;
        let stream = self.with_current_state(|state| state.add_reader(&token, owner));
        let stream = stream.ok_or(GapReason::Expired)?;
        Ok(LeasedStream {
            lease: self.lease(stream),
            position,
        })
    }

    fn lease(self: &Arc<Self>, stream: Arc<SharedStream>) -> StreamLease {
        StreamLease {
            registry: self.clone(),
            stream,
        }
    }

    /// Returns whether the registry has the stream that a cursor belongs to.
    pub(super) fn contains(&self, cursor: &EventId) -> bool {
        StreamToken::split(cursor).is_some_and(|(token, _)| {
            self.with_current_state(|state| state.streams.contains_key(&token))
        })
    }

    /// Ends a lease of the stream with this token. A stream without a lease is parked.
    fn release(self: &Arc<Self>, token: &StreamToken) {
        self.with_current_state(|state| {
            state.remove_reader(token);
            if !state.parked.is_empty() {
                state.ensure_expiry_task(self);
            }
        });
    }

    pub(super) fn counts(&self) -> ResumableCounts {
        self.with_current_state(|state| ResumableCounts {
            active: state.streams.len() - state.parked.len(),
            parked: state.parked.len(),
            parked_bytes: state.parked_bytes,
            resumed: state.resumed,
            parked_too_long: state.parked_too_long,
            evicted: state.evicted,
        })
    }

    /// Removes expired streams, calls `access` with the state, and evicts streams beyond the limits. `access` therefore never sees an expired
    /// stream.
    fn with_current_state<T>(&self, access: impl FnOnce(&mut RegistryState) -> T) -> T {
        let mut removed = Vec::new();
        let mut state = self.lock();
        state.remove_expired(&self.config, &mut removed);
        let result = access(&mut state);
        state.evict_excess(&self.config, &mut removed);
        drop(state);
        drop_streams(removed);
        result
    }

    /// Removes expired streams, and returns the time until the next parked stream expires. Returns `None` if no stream is parked. The
    /// expiry task, which calls this method, then ends.
    fn remove_expired_streams(&self) -> Option<Duration> {
        self.with_current_state(|state| {
            let next = state.time_to_next_expiry(&self.config);
            if next.is_none() {
                state.expiry_task = None;
            }
            next
        })
    }

    // No code outside of this file runs under this lock.
    fn lock(&self) -> MutexGuard<'_, RegistryState> {
        lock(&self.state)
    }
}

impl StreamLease {
    pub(super) fn stream(&self) -> &SharedStream {
        &self.stream
    }
}

/// Drops streams. The caller must hold no lock, because dropping a stream can run any code. A panic of this code is caught.
fn drop_streams(streams: Vec<Arc<SharedStream>>) {
    for stream in streams {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
    }
}

impl RegistryState {
    /// Adds a reader to the stream with this token, and counts the stream as resumed. Unparks the stream if it is parked. Returns `None`
    /// if there is no such stream, or if the stream's owner is not `owner`.
    fn add_reader(
        &mut self,
        token: &StreamToken,
        owner: Option<&str>,
    ) -> Option<Arc<SharedStream>> {
        let registered = self.streams.get_mut(token)?;
        if !registered.stream.is_owned_by(owner) {
            return None;
        }
        registered.readers += 1;
        let parked_key = registered.parked_key.take();
        if let Some(parked) = parked_key.and_then(|key| self.parked.remove(&key)) {
            self.parked_bytes -= parked.memory_len;
        }
        self.resumed += 1;
        Some(registered.stream.clone())
    }

    /// Removes a reader from a stream. Parks the stream if it has no other reader.
    fn remove_reader(&mut self, token: &StreamToken) {
        let Some(registered) = self.streams.get_mut(token) else {
            return;
        };
        registered.readers -= 1;
        if registered.readers > 0 {
            return;
        }
        let parked = ParkingRecord {
            parked_at: Instant::now(),
            token: *token,
            memory_len: registered.stream.inspect_log(|log| log.memory_len()),
        };
        self.parked_bytes += parked.memory_len;
        registered.parked_key = Some(self.next_parked_key);
        self.parked.insert(self.next_parked_key, parked);
        self.next_parked_key += 1;
    }

    fn remove_expired(&mut self, config: &ResumableConfig, removed: &mut Vec<Arc<SharedStream>>) {
        while self.time_to_next_expiry(config) == Some(Duration::ZERO) {
            removed.extend(self.remove_first_parked());
            self.parked_too_long += 1;
        }
    }

    fn evict_excess(&mut self, config: &ResumableConfig, removed: &mut Vec<Arc<SharedStream>>) {
        while self.parked.len() > config.max_parked_streams
            || self.parked_bytes > config.max_parked_bytes
        {
            removed.extend(self.remove_first_parked());
            self.evicted += 1;
        }
    }

    /// Returns the time until the next parked stream expires; `None` if no stream is parked.
    fn time_to_next_expiry(&self, config: &ResumableConfig) -> Option<Duration> {
        let (_, first) = self.parked.first_key_value()?;
        Some(
            config
                .park_timeout
                .saturating_sub(first.parked_at.elapsed()),
        )
    }

    fn remove_first_parked(&mut self) -> Option<Arc<SharedStream>> {
        let (_, first) = self.parked.pop_first()?;
        self.parked_bytes -= first.memory_len;
        let registered = self.streams.remove(&first.token)?;
        if self.streams.is_empty() {
            // The map is replaced by an empty one, to free the memory that many streams needed.
            self.streams = HashMap::new();
        }
        Some(registered.stream)
    }

    /// Starts the expiry task unless the task already runs. Outside of a runtime there is no expiry task, and expired streams are removed
    /// at the next use of the registry.
    fn ensure_expiry_task(&mut self, registry: &Arc<StreamRegistry>) {
        // `is_finished` is also true for a task whose runtime has shut down.
        let is_running = |task: &JoinHandle<()>| !task.is_finished();
        if self.expiry_task.as_ref().is_some_and(is_running) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let registry = Arc::downgrade(registry);
        self.expiry_task = Some(runtime.spawn(drop_expired_streams(registry)));
    }
}

/// Removes expired streams until none is parked or the registry is gone.
async fn drop_expired_streams(registry: Weak<StreamRegistry>) {
    let expire = || registry.upgrade()?.remove_expired_streams();
    while let Some(next) = expire() {
        sleep(next).await;
    }
}

impl Drop for StreamRegistry {
    fn drop(&mut self) {
        if let Some(task) = self.lock().expiry_task.take() {
            task.abort();
        }
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.registry.release(self.stream.token());
    }
}

impl fmt::Debug for StreamRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRegistry")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
