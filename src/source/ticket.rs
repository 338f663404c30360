//! One open stream, as whoever watches over it sees it.
//!
//! What stands above the transports puts a [`Ticket`] into the request's head. [`Subscription::new`] takes it out again, and the
//! transport puts the items that it gets [around](Opening::around) it. So the stream's end comes down the way of its items, and no
//! transport learns why.
//!
//! [`Subscription::new`]: super::Subscription::new

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures_core::Stream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Subscription;
use crate::{error::BoxError, event::Item, time::sooner};

/// What watches over one open stream. It is dropped when nothing of the stream is left.
pub(crate) trait Watch: Send + Sync {
    /// The source has answered the subscription with a stream.
    fn opened(&self, subscription: &Subscription);

    /// What the source is polled in.
    #[cfg(feature = "tracing")]
    fn span(&self) -> Option<&tracing::Span>;

    /// When to end it, as far as that is known.
    fn ends_at(&self) -> Option<Instant>;

    /// The word to end it with, now that it is time.
    fn end(&self) -> Item;

    /// Wakes this waker when [`ends_at`](Self::ends_at) is another; unless it is another already, and then this is false.
    fn wait(&self, waker: &Waker) -> bool;

    /// What the stream has yielded and the transport takes, or its end.
    fn yielded(&self, next: Option<&Result<Item, BoxError>>);

    /// The transport cannot send what the stream has yielded, and cuts it.
    fn cut(&self, error: &BoxError);

    /// It was a poll, and has its answer.
    fn got_answer(&self);

    /// A guard inside has refused it, whatever the status of its answer.
    fn refused(&self);
}

/// An open stream's, and of all that must be gone before the stream is.
#[derive(Clone)]
pub(crate) struct Ticket(Arc<dyn Watch>);

impl Ticket {
    pub(crate) fn new(watch: Arc<dyn Watch>) -> Self {
        Self(watch)
    }

    pub(crate) fn watch(&self) -> &dyn Watch {
        &*self.0
    }

    #[cfg(feature = "tracing")]
    fn enter(&self) -> Option<tracing::span::Entered<'_>> {
        self.0.span().map(tracing::Span::enter)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

/// A subscription that is not answered yet.
#[derive(Debug)]
pub(crate) struct Opening {
    ticket: Option<Ticket>,
    subscription: Subscription,
    /// Otherwise what is opened already does so.
    expires: bool,
}

impl Opening {
    pub(super) fn new(ticket: Option<Ticket>, subscription: Subscription, expires: bool) -> Self {
        Self {
            ticket,
            subscription,
            expires,
        }
    }

    /// It is answered with these items.
    pub(crate) fn around<S>(self, items: S) -> Watched<S> {
        if let Some(ticket) = &self.ticket {
            ticket.0.opened(&self.subscription);
        }
        Watched {
            items,
            ticket: self.ticket,
            expires_at: self.subscription.expires_at().filter(|_| self.expires),
            timer: None,
            state: State::Open,
        }
    }
}

/// A source's items, until it is time to end. What is not watched has neither a timer nor a place to wait in.
pub(crate) struct Watched<S> {
    items: S,
    ticket: Option<Ticket>,
    expires_at: Option<Instant>,
    /// Made when there is a time to wait for.
    timer: Option<Pin<Box<Sleep>>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The source's stream has ended. Polled on, it waits to be ended from here: a poll may be held for a while yet.
    Over,
    /// Ended from here.
    Ended,
}

impl<S> Watched<S> {
    /// By nobody.
    #[cfg(test)]
    pub(crate) fn alone(items: S) -> Self {
        Self {
            items,
            ticket: None,
            expires_at: None,
            timer: None,
            state: State::Open,
        }
    }

    #[cfg(feature = "websocket")]
    pub(crate) fn ticket(&self) -> Option<&Ticket> {
        self.ticket.as_ref()
    }

    /// The transport cannot send what came, and cuts the stream.
    pub(crate) fn cut(&self, error: &BoxError) {
        if let Some(ticket) = &self.ticket {
            ticket.0.cut(error);
        }
    }

    /// Whether the end came from here, and not from the source.
    pub(crate) fn was_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Ready with the end, when it is time.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        let told = self.ticket.as_ref().and_then(|ticket| ticket.0.ends_at());
        let Some(at) = sooner(told, self.expires_at) else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx).map(|()| self.end(at))
    }

    fn end(&mut self, at: Instant) -> Item {
        self.state = State::Ended;
        match &self.ticket {
            Some(ticket) if self.expires_at != Some(at) => ticket.0.end(),
            ticket => {
                if let Some(ticket) = ticket {
                    ticket.0.yielded(Some(&Ok(Item::Expired)));
                }
                Item::Expired
            }
        }
    }

    /// False if it may be time to end by now.
    fn waits(&self, cx: &mut Context<'_>) -> bool {
        let ticket = self.ticket.as_ref();
        ticket.is_none_or(|ticket| ticket.0.wait(cx.waker()))
    }
}

impl<S> Watched<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    /// The same for a transport that takes an event or a gap no more, and only wants to know whether there is one.
    pub(crate) fn poll_ahead(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Item, BoxError>>> {
        self.poll(cx, false)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        takes_content: bool,
    ) -> Poll<Option<Result<Item, BoxError>>> {
        if self.was_ended() {
            return Poll::Ready(None);
        }
        loop {
            // First, so that a stream that never pauses ends too.
            if let Poll::Ready(end) = self.poll_end(cx) {
                return Poll::Ready(Some(Ok(end)));
            }
            if let Poll::Ready(next) = self.poll_item(cx) {
                let is_content = matches!(next, Some(Ok(Item::Event(_) | Item::Gap(_))));
                if let Some(ticket) = &self.ticket {
                    if takes_content || !is_content {
                        ticket.0.yielded(next.as_ref());
                    }
                }
                return Poll::Ready(next);
            }
            if self.waits(cx) {
                return Poll::Pending;
            }
        }
    }

    /// The source's next.
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, BoxError>>> {
        if self.state == State::Over {
            return Poll::Pending;
        }
        let next = {
            #[cfg(feature = "tracing")]
            let _entered = self.ticket.as_ref().and_then(Ticket::enter);
            ready!(Pin::new(&mut self.items).poll_next(cx))
        };
        if next.is_none() {
            self.state = State::Over;
        }
        Poll::Ready(next)
    }
}

impl<S> Stream for Watched<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    type Item = Result<Item, BoxError>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ticket.is_some() || this.expires_at.is_some() || this.state != State::Open {
            return this.poll(cx, true);
        }
        // Nobody ends it but its source.
        let next = Pin::new(&mut this.items).poll_next(cx);
        if matches!(next, Poll::Ready(None)) {
            this.state = State::Over;
        }
        next
    }
}
