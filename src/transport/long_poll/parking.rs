//! What lives on between two polls: the streams of sources that tell no cursor.

use futures_core::Stream;
use http::{HeaderValue, header, request::Parts};

use super::gather::{Gather, Gathered, Gathering, Patience};
use crate::{
    error::BoxError,
    event::{EventId, Gap, GapReason, Item},
    source::{ItemStream, Push, PushSource, Rejection, Resumable, Subscription},
};

/// Where one client's streams are parked.
///
/// A plain stream is parked from its first poll on. A source that resumes is asked again by each poll, with the cursor that it
/// told; if it told none, the client would begin anew and lose what came between, so the rest of its stream is parked too.
pub(super) struct Parking {
    resumable: Resumable,
    owner: String,
}

impl Parking {
    /// A stream is taken up at the same path and under the same `Authorization` only.
    pub(super) fn new(resumable: &Resumable, head: &Parts) -> Self {
        let authorization = head.headers.get(header::AUTHORIZATION);
        let authorization = authorization.map_or(&[][..], HeaderValue::as_bytes);
        Self {
            resumable: resumable.clone(),
            owner: format!("{} {}", head.uri.path(), authorization.escape_ascii()),
        }
    }

    /// One poll.
    pub(super) async fn gather(
        &self,
        push: Push,
        mut subscription: Subscription,
        gathering: Gathering,
        patience: Patience,
    ) -> Result<Gathered, Rejection> {
        let lost = self.lost(&push, &subscription);
        let lost = lost.map(|id| Gap::new(GapReason::Expired).requested(id.clone()));
        let opening = subscription.opening();
        let mut items = self.subscribe(push, subscription).await?;
        // The poll is watched, and not what is parked.
        let watched = opening.around(&mut items);
        let gathering = gathering.behind(lost);
        let mut gathered = Gather::new(watched, gathering, patience).await;
        if gathered.leaves_no_cursor() {
            let rest = ItemStream::with_first_item(gathered.take_ahead(), items);
            gathered.cursor = Some(self.resumable.park(rest, Some(self.owner.clone().into())));
        }
        Ok(gathered)
    }

    /// What is there for this cursor: the stream that is parked under it, or else the source's.
    pub(super) async fn subscribe(
        &self,
        push: Push,
        subscription: Subscription,
    ) -> Result<
        ItemStream<impl Stream<Item = Result<Item, BoxError>> + Send + Unpin + use<>>,
        Rejection,
    > {
        let is_parked = |id| self.resumable.contains(id);
        let push = if push.is_resumable() && !subscription.cursor().is_some_and(is_parked) {
            push
        } else {
            Push::new(self.resumable.wrap(push).owner(self.owner.clone()))
        };
        push.subscribe(subscription).await
    }

    /// The cursor, if it may be of a stream that was parked and let go: a source that then tells no cursor cannot know it.
    pub(super) fn lost<'a>(
        &self,
        push: &Push,
        subscription: &'a Subscription,
    ) -> Option<&'a EventId> {
        let may_be_lost =
            |id: &&EventId| Resumable::is_stream_cursor(id) && !self.resumable.contains(id);
        let cursor = subscription.cursor().filter(may_be_lost);
        cursor.filter(|_| push.is_resumable())
    }
}
