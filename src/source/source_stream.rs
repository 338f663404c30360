use std::{
    any::Any,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

#[cfg(feature = "websocket")]
use super::ItemStream;
#[cfg(feature = "server")]
use super::log::WatchedLog;
use super::{PushSource, channel, hub, relay};
use crate::{
    BoxError,
    event::{Item, ItemOrRun},
};

/// The stream of a source.
pub(crate) trait SourceStream: Stream<Item = Result<Item, BoxError>> + Send {
    /// See [`PushSource::poll_next_run`].
    fn poll_next_run(
        self: Pin<&mut Self>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>>;

    /// Lets the stream yield the events that its log holds back in a flush window. Returns an upper bound for their number.
    fn release_and_count_held_events(self: Pin<&mut Self>) -> u32 {
        0
    }

    /// Reads the memory that the next poll needs first, so that the processor loads it into its cache. By default, reads nothing.
    #[cfg(feature = "server")]
    fn prefetch(&self) {}

    /// Prepares the stream for an event loop, which drives many connections in one task. The event loop polls the stream once more, and then
    /// whenever its waker is woken or one of the returned logs changes.
    ///
    /// By default, a stream needs a task of its own, because it may run the application's code, which may be slow.
    #[cfg(feature = "server")]
    fn join_event_loop(self: Pin<&mut Self>) -> EventLoopJoin {
        EventLoopJoin::NeedsOwnTask
    }
}

/// The result of [`SourceStream::join_event_loop`].
#[cfg(feature = "server")]
pub(crate) enum EventLoopJoin {
    /// The stream runs the application's code. The connection needs a task of its own.
    NeedsOwnTask,
    /// The stream reads these logs, and stores no waker in them. The stream may read other logs too, which wake its waker.
    Joined(Vec<std::sync::Arc<dyn WatchedLog>>),
}

/// The stream of any source, as one type.
pub(crate) enum AnySourceStream {
    /// The subscriber of a channel. As the most frequent stream, it is not boxed, so that a connection needs one allocation less.
    Channel(channel::Subscriber),
    Boxed(Pin<Box<dyn SourceStream>>),
}

impl AnySourceStream {
    /// Wraps the stream of a source.
    pub(super) fn of_source<S>(stream: S::Stream) -> Self
    where
        S: PushSource + 'static,
    {
        Self::of_log_reader(stream)
            .unwrap_or_else(|stream| Self::Boxed(Box::pin(ApplicationStream::<S> { stream })))
    }

    /// Wraps a stream that is not the stream of a source.
    #[cfg(feature = "websocket")]
    pub(super) fn of_plain_stream<S>(stream: S) -> Self
    where
        S: Stream<Item = Result<Item, BoxError>> + Send + 'static,
    {
        Self::of_log_reader(stream).unwrap_or_else(|stream| {
            let stream = ItemStream::new(stream);
            Self::Boxed(Box::pin(ApplicationStream::<S> { stream }))
        })
    }

    /// Wraps a reader of one of our own logs: the function has one line for each type of reader. Returns any other stream as the error.
    fn of_log_reader<S: 'static>(stream: S) -> Result<Self, S> {
        let mut stream = Some(stream);
        let wrapped = None
            .or_else(|| take_downcast(&mut stream).map(Self::Channel))
            .or_else(|| take_downcast::<relay::RelaySubscriber>(&mut stream).map(Self::boxed))
            .or_else(|| take_downcast::<hub::HubSubscriber>(&mut stream).map(Self::boxed));
        match (wrapped, stream) {
            (Some(wrapped), _) => Ok(wrapped),
            (None, Some(stream)) => Err(stream),
            (None, None) => unreachable!("only a wrapped stream is taken out"),
        }
    }

    fn boxed(stream: impl SourceStream + 'static) -> Self {
        Self::Boxed(Box::pin(stream))
    }

    pub(super) fn as_pin_mut(&mut self) -> Pin<&mut dyn SourceStream> {
        match self {
            Self::Channel(subscriber) => {
                let subscriber: Pin<&mut channel::Subscriber> = Pin::new(subscriber);
                subscriber
            }
            Self::Boxed(stream) => stream.as_mut(),
        }
    }

    /// See [`SourceStream::poll_next_run`].
    #[inline]
    pub(super) fn poll_next_run(
        &mut self,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        match self {
            Self::Channel(subscriber) => Pin::new(subscriber).poll_next_run(min_len, cx),
            Self::Boxed(stream) => stream.as_mut().poll_next_run(min_len, cx),
        }
    }

    /// See [`SourceStream::prefetch`].
    #[cfg(feature = "server")]
    pub(super) fn prefetch(&self) {
        match self {
            Self::Channel(subscriber) => subscriber.prefetch(),
            Self::Boxed(stream) => stream.prefetch(),
        }
    }
}

impl Stream for AnySourceStream {
    type Item = Result<Item, BoxError>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().as_pin_mut().poll_next(cx)
    }
}

/// Takes the stream if it is a `T`. `stream` is an `Option<S>`.
fn take_downcast<T: 'static>(stream: &mut dyn Any) -> Option<T> {
    stream.downcast_mut::<Option<T>>()?.take()
}

pin_project! {
    /// A stream of the source `S`, which may run the application's code.
    struct ApplicationStream<S: PushSource> {
        #[pin]
        stream: S::Stream,
    }
}

impl<S: PushSource> Stream for ApplicationStream<S> {
    type Item = Result<Item, BoxError>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.project().stream.poll_next(cx)
    }
}

impl<S: PushSource> SourceStream for ApplicationStream<S> {
    #[inline]
    fn poll_next_run(
        self: Pin<&mut Self>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        S::poll_next_run(self.project().stream, min_len, cx)
    }
}
