use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_core::Stream;

use super::{Inner, LagPolicy, Place, log::Next, taken::Taken};
use crate::{
    error::{BoxError, Error},
    event::{EventId, Gap, GapReason, Item},
    sync::WaiterKey,
};

/// One subscriber of a [`Channel`](super::Channel): the items behind its cursor, and then those to come.
///
/// It holds a cursor into the channel's log, and of the log itself never more than what is about to be sent.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Subscriber {
    inner: Arc<Inner>,
    waiter: WaiterKey,
    /// The number of the last event taken from the log.
    at: u64,
    first: Option<Box<Item>>,
    /// Taken from the log, and not yielded yet.
    taken: Taken,
    /// The cursor that it resumes from, until it has caught up or read something.
    requested: Option<EventId>,
    is_over: bool,
}

/// What is taken from the log at once, unless one event is more.
const TAKEN: usize = 16 * 1024;

impl Subscriber {
    pub(super) fn new(inner: Arc<Inner>, place: Place) -> Self {
        let reader = inner.readers.fetch_add(1, Ordering::Relaxed);
        let waiter = inner.shared.wait_list.register(reader);
        inner
            .subscribers
            .send_modify(|subscribers| *subscribers += 1);
        Self {
            inner,
            waiter,
            at: place.number,
            first: place.first.map(Box::new),
            taken: Taken::default(),
            requested: place.requested,
            is_over: false,
        }
    }

    /// The events up to this number are gone.
    fn missed(&mut self, resumed: u64) -> Result<Item, BoxError> {
        let missed = resumed - self.at;
        let (reason, count) = match self.requested {
            Some(_) => (GapReason::Expired, &self.inner.counts.expired),
            None => (GapReason::Lagged, &self.inner.counts.lagged),
        };
        add(count, missed);
        if reason == GapReason::Lagged && matches!(self.inner.lag_policy, LagPolicy::Disconnect) {
            self.is_over = true;
            return Err(Error::lagged().into());
        }
        self.at = resumed;
        let mut gap = Gap::new(reason).missed(missed);
        gap.requested = self.requested.take();
        gap.resumed = Some(self.inner.epoch.id(resumed));
        Ok(Item::Gap(gap))
    }

    /// Up to this number everything was taken; what was not is there in a newer form.
    fn took(&mut self, number: u64) {
        let conflated = number - self.at - self.taken.len() as u64;
        add(&self.inner.counts.conflated, conflated);
        self.at = number;
        self.requested = None;
    }
}

fn add(count: &AtomicU64, events: u64) {
    if events > 0 {
        count.fetch_add(events, Ordering::Relaxed);
    }
}

impl Stream for Subscriber {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(*first)));
        }
        while !this.is_over {
            if let Some(event) = this.taken.pop() {
                return Poll::Ready(Some(Ok(Item::Event(event))));
            }
            match this.inner.shared.read(this.at, TAKEN, &mut this.taken) {
                Next::Read(number) => this.took(number),
                Next::Gone(number) => return Poll::Ready(Some(this.missed(number))),
                Next::Closed => {
                    this.is_over = true;
                    return Poll::Ready(Some(Ok(Item::Finished)));
                }
                Next::Nothing => {
                    this.requested = None;
                    if this.inner.shared.wait(&this.waiter, cx.waker(), this.at) {
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.inner.shared.wait_list.deregister(&self.waiter);
        self.inner
            .subscribers
            .send_modify(|subscribers| *subscribers -= 1);
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
