use tokio::time::Instant;

use crate::sync::{Mutex, lock};

/// Whether requests of a connection are open, and since when the connection waits for the next one.
#[derive(Debug)]
pub(super) struct ConnectionActivity(Mutex<ActivityState>);

#[derive(Debug)]
struct ActivityState {
    /// The number of requests whose response is not complete.
    open_requests: usize,
    /// The time at which the last request was completed, or at which the connection was opened.
    idle_since: Instant,
    /// The time at which the client began to send the head of a request, if the head is not complete.
    head_began_at: Option<Instant>,
}

/// The input for which a connection without open requests waits, and the time at which the wait began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AwaitedInput {
    /// The rest of the head of a request.
    RestOfHead(Instant),
    /// The first byte of a request.
    NextRequest(Instant),
}

/// Keeps a request counted as open until this value is dropped.
#[derive(Debug)]
pub(super) struct OpenRequest(std::sync::Arc<ConnectionActivity>);

impl ConnectionActivity {
    /// Creates the state of a new connection, whose first head is awaited.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(ActivityState {
            open_requests: 0,
            idle_since: now,
            head_began_at: Some(now),
        }))
    }

    /// Records that bytes of the client have arrived on an HTTP/1 connection.
    pub(super) fn on_read(&self) {
        let mut state = lock(&self.0);
        if state.open_requests == 0 && state.head_began_at.is_none() {
            state.head_began_at = Some(Instant::now());
        }
    }

    /// Records that no head is awaited on an HTTP/2 connection, because the heads of several requests mix there.
    pub(super) fn stop_awaiting_head(&self) {
        lock(&self.0).head_began_at = None;
    }

    /// Counts another request as open.
    pub(super) fn open_request(self: &std::sync::Arc<Self>) -> OpenRequest {
        let mut state = lock(&self.0);
        state.open_requests += 1;
        state.head_began_at = None;
        OpenRequest(self.clone())
    }

    /// Returns what the connection waits for, or `None` while a request is open.
    pub(super) fn awaited_input(&self) -> Option<AwaitedInput> {
        let state = lock(&self.0);
        if state.open_requests > 0 {
            return None;
        }
        Some(match state.head_began_at {
            Some(began_at) => AwaitedInput::RestOfHead(began_at),
            None => AwaitedInput::NextRequest(state.idle_since),
        })
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0);
        state.open_requests -= 1;
        if state.open_requests == 0 {
            state.idle_since = Instant::now();
        }
    }
}
