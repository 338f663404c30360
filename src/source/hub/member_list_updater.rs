use std::{fmt, sync::Arc};

use tokio::time::Instant;
use tower_push_proto::feed_backoff::FeedBackoff;

use super::{HubWriter, MemberSnapshot};
use crate::{
    event::{Gap, GapReason},
    source::relay::ReaderMetrics,
};

/// Sets the lists of members that the reader of a broker has read, and says when to read the list again after a failure. `E` is the error of a read.
///
/// The reader of a broker reads the list of members before each [`gap`](HubWriter::gap). If the broker refuses this, events need not wait: the hub
/// keeps its list, which lacks the changes that were in the gap, until a later read succeeds. Connected clients get the new list with another gap. The
/// last error is in [`ReaderStatus::members_error`](crate::source::relay::ReaderStatus::members_error).
///
/// ```
/// use std::io::Error;
///
/// use tower_push::source::hub::{HubWriter, MemberListUpdater, MemberSnapshot};
///
/// # async fn read_members() -> Result<MemberSnapshot, Error> { Err(Error::other("no broker")) }
/// async fn before_gap(updater: &mut MemberListUpdater<Error>, writer: &mut HubWriter) {
///     updater.finish_read(writer, read_members().await);
/// }
///
/// async fn after_each_read_of_events(updater: &mut MemberListUpdater<Error>, writer: &mut HubWriter) {
///     if updater.must_read_again() {
///         updater.finish_reread(writer, read_members().await);
///     }
/// }
/// ```
pub struct MemberListUpdater<E> {
    metrics: Arc<ReaderMetrics<E>>,
    /// When to read the list again. `None` unless the last read has failed.
    reread_at: Option<Instant>,
    backoff: FeedBackoff,
}

impl<E> MemberListUpdater<E> {
    /// Creates an updater that records the results of reads in `metrics`.
    pub fn new(metrics: Arc<ReaderMetrics<E>>) -> Self {
        Self {
            metrics,
            reread_at: None,
            backoff: FeedBackoff::default(),
        }
    }

    /// Handles the result of a read before a gap: sets the list, or keeps the old one until it is read again.
    pub fn finish_read(&mut self, writer: &mut HubWriter, result: Result<MemberSnapshot, E>) {
        let error = match result {
            Ok(members) => {
                writer.set_members(members);
                self.reread_at = None;
                self.backoff = FeedBackoff::default();
                None
            }
            Err(error) => {
                self.reread_at = Some(Instant::now() + self.backoff.next_delay());
                Some(error)
            }
        };
        self.metrics.record_member_list_result(error);
    }

    /// Returns whether it is time to read the list again: a random time between 20 ms and 5 s after the last failure, which grows with each failure.
    /// Returns `false` if the last read has succeeded.
    pub fn must_read_again(&self) -> bool {
        self.reread_at.is_some_and(|at| at <= Instant::now())
    }

    /// Like [`finish_read`](Self::finish_read), for a read that no gap follows: connected clients get the list with a gap, in which no event is
    /// missing.
    pub fn finish_reread(&mut self, writer: &mut HubWriter, result: Result<MemberSnapshot, E>) {
        self.finish_read(writer, result);
        if self.reread_at.is_none() {
            let mut gap = Gap::new(GapReason::Expired);
            gap.resumed = writer.last_id();
            writer.gap(&gap);
        }
    }
}

impl<E> fmt::Debug for MemberListUpdater<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberListUpdater")
            .field("reread_at", &self.reread_at)
            .finish_non_exhaustive()
    }
}
