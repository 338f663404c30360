use std::{collections::VecDeque, fmt, sync::Arc};

use super::{
    ResumableStream,
    item_log::{ItemLog, ItemLogReadOutcome, LoggedEnd},
    shared_stream::SharedStream,
    stream_registry::{LeasedStream, StreamRegistry},
};
use crate::{
    event::{Gap, GapReason, Item},
    source::{PushSource, Rejection, Subscription},
};

/// A source whose stream clients can resume, from [`Resumable::wrap`](super::Resumable::wrap).
#[derive(Clone)]
#[must_use = "a source does nothing unless it is subscribed to"]
pub struct ResumableSource<S> {
    source: S,
    owner: Option<Box<str>>,
    registry: Arc<StreamRegistry>,
}

impl<S> ResumableSource<S> {
    pub(super) fn new(source: S, registry: Arc<StreamRegistry>) -> Self {
        Self {
            source,
            owner: None,
            registry,
        }
    }

    /// Sets the owner of the stream: only a request with the same owner can resume the stream. A request with a different owner, or
    /// with none, is answered as if the stream did not exist. By default a stream has no owner, and requests without an owner can
    /// resume it.
    ///
    /// ```
    /// # use tower_push::{Push, Resumable};
    /// # fn handler(resumable: &Resumable, user: &str) -> Push {
    /// # let stream = tokio_stream::iter(["any"]);
    /// Push::new(resumable.wrap(stream).owner(user))
    /// # }
    /// ```
    pub fn owner(mut self, owner: impl Into<Box<str>>) -> Self {
        self.owner = Some(owner.into());
        self
    }
}

/// Each client gets the stream that its cursor belongs to. If there is no such stream, the client gets the wrapped source's stream.
impl<S: PushSource + Send> PushSource for ResumableSource<S> {
    type Stream = ResumableStream;

    async fn subscribe(self, subscription: Subscription) -> Result<ResumableStream, Rejection> {
        let Some(cursor) = subscription.cursor().cloned() else {
            let subscription = subscription.without_cursor();
            return self
                .subscribe_to_source(subscription, VecDeque::new())
                .await;
        };
        let gap = |reason| Gap::new(reason).requested(cursor.clone());
        let leased = self
            .registry
            .lease_by_cursor(&cursor, self.owner.as_deref());
        let first_items = match leased {
            Ok(leased) => match resume(leased, gap(GapReason::Epoch)) {
                ResumeOutcome::Stream(stream) => return Ok(stream.with_requested_cursor(cursor)),
                ResumeOutcome::Finished => return Err(Rejection::finished()),
                ResumeOutcome::Ended(remaining_items) => remaining_items,
            },
            Err(reason) => [Item::from(gap(reason))].into(),
        };
        self.subscribe_to_source(subscription.without_cursor(), first_items)
            .await
    }

    fn is_for_one_client(&self) -> bool {
        true
    }
}

impl<S: PushSource> ResumableSource<S> {
    /// Subscribes to the wrapped source, and adds the source's stream to the registry. The returned stream yields `first_items` before the
    /// source's items.
    async fn subscribe_to_source(
        self,
        subscription: Subscription,
        mut first_items: VecDeque<Item>,
    ) -> Result<ResumableStream, Rejection> {
        let stream = self.source.subscribe(subscription).await?;
        let lease = self.registry.insert(Box::pin(stream), self.owner);
        let cursor = lease.stream().item_id(0);
        match first_items.back_mut() {
            Some(Item::Gap(gap)) => gap.resumed = Some(cursor),
            _ => first_items.push_back(Item::Cursor(cursor)),
        }
        Ok(ResumableStream::new(lease, 0, first_items))
    }
}

/// The result of [`resume`]: what a client gets if its cursor belongs to a registered stream.
enum ResumeOutcome {
    /// The client reads the stream from its position on.
    Stream(ResumableStream),
    /// The client has received all items, and the source has finished.
    Finished,
    /// The client gets the remaining items of a stream that has ended, and then the stream of its new request.
    Ended(VecDeque<Item>),
}

/// Resumes a stream at the position of the client's cursor. The client gets `gap` if its cursor is ahead of the stream's log, or if the
/// stream has failed.
fn resume(leased: LeasedStream, gap: Gap) -> ResumeOutcome {
    let LeasedStream { lease, position } = leased;
    let stream = lease.stream();
    let (before_oldest, last_position, end) = stream.inspect_log(|log| {
        (
            log.position_before_oldest(),
            log.last_position(),
            log.stream_end().cloned(),
        )
    });
    if position > last_position {
        let gap = Item::from(gap.resumed(stream.item_id(before_oldest)));
        return ResumeOutcome::Stream(ResumableStream::new(lease, before_oldest, [gap].into()));
    }
    match end {
        Some(LoggedEnd::Finished) if position == last_position => ResumeOutcome::Finished,
        Some(LoggedEnd::Ended | LoggedEnd::EndedWithRetry(_)) if position == last_position => {
            ResumeOutcome::Ended(VecDeque::new())
        }
        Some(LoggedEnd::Closed(close)) if position == last_position && !close.end.finished => {
            ResumeOutcome::Ended(VecDeque::new())
        }
        Some(LoggedEnd::Failed(_)) => {
            let mut items = stream.inspect_log(|log| remaining_items(log, position, stream, &gap));
            items.push_back(Item::from(gap));
            ResumeOutcome::Ended(items)
        }
        _ => ResumeOutcome::Stream(ResumableStream::new(lease, position, VecDeque::new())),
    }
}

/// Returns the items that `log` holds after `position`. A copy of `gap` stands for items that are trimmed.
fn remaining_items(
    log: &ItemLog,
    mut position: u64,
    stream: &SharedStream,
    gap: &Gap,
) -> VecDeque<Item> {
    let mut items = VecDeque::new();
    loop {
        match log.read(position) {
            Some(ItemLogReadOutcome::Item(item)) => {
                position += 1;
                items.push_back(item);
            }
            Some(ItemLogReadOutcome::Trimmed { up_to, missed }) => {
                position = up_to;
                let mut gap = gap.clone();
                gap.reason = GapReason::Expired;
                gap.resumed = Some(stream.item_id(up_to));
                gap.missed = missed;
                items.push_back(Item::from(gap));
            }
            Some(ItemLogReadOutcome::End(_)) | None => return items,
        }
    }
}

impl<S> fmt::Debug for ResumableSource<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumableSource").finish_non_exhaustive()
    }
}
