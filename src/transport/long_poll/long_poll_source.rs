use http::{HeaderValue, header, request::Parts};

use super::{
    batch_builder::{Batch, BatchBuilder},
    collect_batch::{CollectBatch, WaitTimes},
};
use crate::{
    event::{EventId, Gap, GapReason},
    source::{ItemStream, Push, PushSource, Rejection, Resumable, StartPosition, Subscription},
    supervision::{PendingSubscription, SupervisedStream},
};

/// The source that one long-poll request reads, or the client's parked stream in its place.
///
/// A plain stream is parked between two requests. Each request subscribes anew to a source that resumes, with the cursor of the
/// response before. If a source that resumes gives no cursor, the rest of its stream is parked too: without a cursor, the next
/// request would begin with the next event, and lose the events in between.
pub(super) struct LongPollSource {
    pending: PendingSubscription,
    push: Push,
    resumable: Resumable,
    /// The owner of the streams that this poll parks: the path and `Authorization` of its request. A poll with a different owner cannot
    /// resume these streams.
    owner: String,
}

impl LongPollSource {
    pub(super) fn new(
        head: &mut Parts,
        transport: &'static str,
        push: Push,
        resumable: &Resumable,
    ) -> Self {
        let authorization = head.headers.get(header::AUTHORIZATION);
        let authorization = authorization.map_or(&[][..], HeaderValue::as_bytes);
        let owner = format!("{} {}", head.uri.path(), authorization.escape_ascii());
        let pending = PendingSubscription::new(head, transport);
        Self {
            pending: pending.map_subscription(Subscription::without_early_response),
            push,
            resumable: resumable.clone(),
            owner,
        }
    }

    pub(super) fn map_subscription(self, map: impl FnOnce(Subscription) -> Subscription) -> Self {
        Self {
            pending: self.pending.map_subscription(map),
            ..self
        }
    }

    pub(super) fn with_start(self, start: StartPosition) -> Self {
        self.map_subscription(|subscription| subscription.with_start(start))
    }

    pub(super) fn request_head(&self) -> &Parts {
        self.pending.subscription().head()
    }

    pub(super) fn cursor(&self) -> Option<&EventId> {
        self.pending.subscription().cursor()
    }

    /// Returns whether the push's source resumes from cursors, as every source but a plain stream does.
    pub(super) fn is_resumable(&self) -> bool {
        self.push.is_resumable()
    }

    /// Returns the client's cursor if it has the form of a parked stream's cursor, but this stream is no longer parked. The
    /// client has lost its position only if the source gives no cursor of its own.
    pub(super) fn possibly_lost_cursor(&self) -> Option<&EventId> {
        let may_be_lost =
            |id: &&EventId| Resumable::is_stream_cursor(id) && !self.resumable.contains(id);
        self.cursor()
            .filter(may_be_lost)
            .filter(|_| self.is_resumable())
    }

    /// Resumes the stream that is parked under the client's cursor, or else subscribes to the source.
    pub(super) async fn resume_or_open(self) -> Result<SupervisedStream, Rejection> {
        resume_parked_or_open(self.pending, self.push, &self.resumable, &self.owner).await
    }

    /// Opens the stream and collects one batch. The rest of the stream is parked if the client could not resume without it.
    pub(super) async fn collect_batch(
        self,
        builder: BatchBuilder,
        wait_times: WaitTimes,
    ) -> Result<Batch, Rejection> {
        let gap = self
            .possibly_lost_cursor()
            .map(|id| Gap::new(GapReason::Expired).requested(id.clone()));
        let builder = builder.with_lost_cursor_gap(gap);
        let opened = resume_parked_or_open(self.pending, self.push, &self.resumable, &self.owner);
        let mut stream = opened.await?;
        let mut batch = CollectBatch::new(&mut stream, builder, wait_times).await;
        if batch.must_park_stream() {
            // The stream is parked without its supervision, because the guard supervises only this poll.
            let rest = ItemStream::with_first_item(batch.take_lookahead(), stream.into_inner());
            batch.cursor = Some(self.resumable.park(rest, Some(self.owner.into())));
        }
        Ok(batch)
    }
}

/// Resumes the stream that is parked under the subscription's cursor, or else subscribes to `push`. If the push's source resumes from
/// cursors itself, `resumable` is used only for a stream that is parked under the cursor.
async fn resume_parked_or_open(
    pending: PendingSubscription,
    push: Push,
    resumable: &Resumable,
    owner: &str,
) -> Result<SupervisedStream, Rejection> {
    let cursor = pending.subscription().cursor();
    let is_parked = cursor.is_some_and(|id| resumable.contains(id));
    let push = if push.is_resumable() && !is_parked {
        push
    } else {
        Push::new(resumable.wrap(push).owner(owner))
    };
    pending.open(push).await
}
