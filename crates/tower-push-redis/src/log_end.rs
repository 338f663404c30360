use std::sync::{Mutex, MutexGuard, PoisonError};

use tower_push::EventId;

use crate::entry_id::EntryId;

/// The end of this process's log, which the reader tells the upstream. If the newest entries of the stream were removed, the position of the reader
/// is after the last event of the log, and there is no event between them.
#[derive(Debug, Default)]
pub(crate) struct LogEnd(Mutex<LogEndState>);

#[derive(Debug, Default)]
struct LogEndState {
    /// The id of the reader's position in the stream.
    position: EntryId,
    /// The cursor at which the log ends. `None` if the log knows no cursor, as after a gap.
    cursor: Option<EventId>,
}

impl LogEnd {
    pub(crate) fn set(&self, position: EntryId, cursor: Option<EventId>) {
        *self.lock() = LogEndState { position, cursor };
    }

    /// Forgets the cursor. Called before the log gets a gap, so that no client is sent past it.
    pub(crate) fn forget_cursor(&self) {
        self.lock().cursor = None;
    }

    /// Returns the cursor at the end of the log, if the reader is at this position.
    pub(crate) fn cursor_at(&self, position: EntryId) -> Option<EventId> {
        let state = self.lock();
        let is_there = state.position == position;
        is_there.then(|| state.cursor.clone()).flatten()
    }

    fn lock(&self) -> MutexGuard<'_, LogEndState> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
