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
/// keeps its list, which lacks the changes that were in the gap, until a later read succeeds. If the broker has lost the members, the hub keeps its
/// list, too, until all nodes have told the broker of their members ([`MemberSnapshot::storage_age`]). Connected clients get a list that is another one
/// with another gap. The last error is in [`ReaderStatus::members_error`](crate::source::relay::ReaderStatus::members_error).
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
///     if updater.must_read_again(writer) {
///         updater.finish_reread(writer, read_members().await);
///     }
/// }
/// ```
pub struct MemberListUpdater<E> {
    metrics: Arc<ReaderMetrics<E>>,
    /// When to read the list again after a failure. `None` unless the last read has failed.
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

    /// Handles the result of a read before a gap: sets the list, or keeps the old one until it is read again. Returns whether the list is another
    /// one than before.
    pub fn finish_read(
        &mut self,
        writer: &mut HubWriter,
        result: Result<MemberSnapshot, E>,
    ) -> bool {
        let mut is_changed = false;
        let error = match result {
            Ok(members) => {
                is_changed = writer.set_members(members);
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
        is_changed
    }

    /// Returns whether it is time to read the list again. This time is random between 20 ms and 5 s after the last failure, and grows with each
    /// failure. If the last read has succeeded, this time is the [node timeout](super::PresenceOptions::node_timeout) after the broker has lost the members.
    pub fn must_read_again(&self, writer: &HubWriter) -> bool {
        match self.reread_at {
            Some(at) => at <= Instant::now(),
            None => writer.must_read_members_again(),
        }
    }

    /// Like [`finish_read`](Self::finish_read), for a read that no gap follows: if the list is another one than before, connected clients get it with
    /// a gap, in which no event is missing.
    pub fn finish_reread(&mut self, writer: &mut HubWriter, result: Result<MemberSnapshot, E>) {
        if self.finish_read(writer, result) {
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
