//! What lives on between two polls: the streams of sources that tell no cursor.

use http::{HeaderValue, header, request::Parts};

use super::gather::{Gather, Gathered, Gathering, Patience};
use crate::{
    event::{EventId, Gap, GapReason},
    source::{ItemStream, Push, PushSource, Rejection, Resumable, Subscription},
    supervision::PendingStream,
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
        pending: PendingStream,
        gathering: Gathering,
        patience: Patience,
    ) -> Result<Gathered, Rejection> {
        let lost = self.lost(&push, pending.subscription());
        let lost = lost.map(|id| Gap::new(GapReason::Expired).requested(id.clone()));
        let push = self.push_for(push, pending.subscription());
        let mut items = pending.open(push).await?;
        let gathering = gathering.behind(lost);
        let mut gathered = Gather::new(&mut items, gathering, patience).await;
        if gathered.leaves_no_cursor() {
            // The poll is supervised, and not what is parked.
            let rest = ItemStream::with_first_item(gathered.take_ahead(), items.into_inner());
            gathered.cursor = Some(self.resumable.park(rest, Some(self.owner.clone().into())));
        }
        Ok(gathered)
    }

    /// Returns what serves the cursor of `subscription`: the stream that is parked under it, or else `push` itself.
    pub(super) fn push_for(&self, push: Push, subscription: &Subscription) -> Push {
        let is_parked = |id| self.resumable.contains(id);
        if push.is_resumable() && !subscription.cursor().is_some_and(is_parked) {
            push
        } else {
            Push::new(self.resumable.wrap(push).owner(self.owner.clone()))
        }
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
