use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::{ClientMessages, PushSource, Rejection, Subscription};
use crate::{
    BoxError,
    event::{IntoItem, Item, ItemOrRun, Payload},
};

/// A source that passes each client's messages to a function, and sends the client the answers among the items of another source. Created by
/// [`PushSource::answering`].
#[derive(Clone)]
#[must_use = "a source does nothing until a client subscribes to it"]
pub struct AnsweringSource<S, F> {
    source: S,
    answer: F,
}

pin_project! {
    /// The items that one client of an [`AnsweringSource`] gets.
    #[must_use = "streams do nothing unless polled"]
    pub struct AnsweringStream<S, F, Fut> {
        #[pin]
        stream: S,
        answers: Answers<F, Fut>,
        // Whether the last item was an answer. The next item is then one of the stream if both are ready.
        was_answer: bool,
    }
}

/// The answers to one client's messages, one after another.
struct Answers<F, Fut> {
    /// `None` once the client sends no more.
    messages: Option<ClientMessages>,
    answer: F,
    /// The future of the answer to the message that was read last.
    pending: Option<Pin<Box<Fut>>>,
}

/// The maximum number of messages without an answer that are read in one poll, so that other tasks can run.
const MAX_MESSAGES_PER_POLL: usize = 16;

impl<S, F> AnsweringSource<S, F> {
    pub(super) fn new(source: S, answer: F) -> Self {
        Self { source, answer }
    }
}

impl<F, Fut, T> Answers<F, Fut>
where
    F: FnMut(Payload) -> Fut,
    Fut: Future<Output = Option<T>>,
    T: IntoItem,
{
    /// Returns the next answer. The client's next message is read only after the answer to the message before it.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Item, BoxError>> {
        for _ in 0..MAX_MESSAGES_PER_POLL {
            if let Some(pending) = &mut self.pending {
                let answer = ready!(pending.as_mut().poll(cx));
                self.pending = None;
                if let Some(answer) = answer {
                    return Poll::Ready(answer.into_item());
                }
            }
            let Some(messages) = &mut self.messages else {
                return Poll::Pending;
            };
            match ready!(Pin::new(messages).poll_next(cx)) {
                Some(message) => self.pending = Some(Box::pin((self.answer)(message))),
                None => self.messages = None,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S, F, Fut, T> PushSource for AnsweringSource<S, F>
where
    S: PushSource + Send,
    F: FnMut(Payload) -> Fut + Send + 'static,
    Fut: Future<Output = Option<T>> + Send + 'static,
    T: IntoItem,
{
    type Stream = AnsweringStream<S::Stream, F, Fut>;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        let answers = Answers {
            messages: subscription.client_messages(),
            answer: self.answer,
            pending: None,
        };
        let stream = self.source.subscribe(subscription).await?;
        Ok(AnsweringStream {
            stream,
            answers,
            was_answer: false,
        })
    }

    fn is_resumable(&self) -> bool {
        self.source.is_resumable()
    }

    fn is_for_one_client(&self) -> bool {
        self.source.is_for_one_client()
    }

    fn poll_next_run(
        stream: Pin<&mut Self::Stream>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        stream.poll_with(
            |stream, cx| S::poll_next_run(stream, min_len, cx),
            ItemOrRun::Item,
            cx,
        )
    }
}

impl<S, F, Fut, T> AnsweringStream<S, F, Fut>
where
    F: FnMut(Payload) -> Fut,
    Fut: Future<Output = Option<T>>,
    T: IntoItem,
{
    /// Returns the next answer or the next item of the stream, which `poll_stream` polls.
    fn poll_with<I>(
        self: Pin<&mut Self>,
        poll_stream: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<Option<Result<I, BoxError>>>,
        from_item: impl FnOnce(Item) -> I,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<I, BoxError>>> {
        let this = self.project();
        if !*this.was_answer {
            if let Poll::Ready(answer) = this.answers.poll_next(cx) {
                *this.was_answer = true;
                return Poll::Ready(Some(answer.map(from_item)));
            }
            return poll_stream(this.stream, cx);
        }
        *this.was_answer = false;
        if let Poll::Ready(item) = poll_stream(this.stream, cx) {
            return Poll::Ready(item);
        }
        let answer = ready!(this.answers.poll_next(cx));
        *this.was_answer = true;
        Poll::Ready(Some(answer.map(from_item)))
    }
}

impl<S, F, Fut, T> Stream for AnsweringStream<S, F, Fut>
where
    S: Stream<Item = Result<Item, BoxError>>,
    F: FnMut(Payload) -> Fut,
    Fut: Future<Output = Option<T>>,
    T: IntoItem,
{
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_with(S::poll_next, |item| item, cx)
    }
}

impl<S, F> fmt::Debug for AnsweringSource<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnsweringSource").finish_non_exhaustive()
    }
}

impl<S, F, Fut> fmt::Debug for AnsweringStream<S, F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnsweringStream").finish_non_exhaustive()
    }
}
