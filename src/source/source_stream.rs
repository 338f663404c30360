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

    /// Lets the stream yield the events that its log holds back in a flush window. Returns their number.
    fn release_and_count_held_events(self: Pin<&mut Self>) -> u32 {
        0
    }

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

/// Boxes the stream of a source.
pub(super) fn box_source_stream<S>(stream: S::Stream) -> Pin<Box<dyn SourceStream>>
where
    S: PushSource + 'static,
{
    box_log_reader(stream).unwrap_or_else(|stream| Box::pin(ApplicationStream::<S> { stream }))
}

/// Boxes a stream that is not the stream of a source.
#[cfg(feature = "websocket")]
pub(super) fn box_plain_stream<S>(stream: S) -> Pin<Box<dyn SourceStream>>
where
    S: Stream<Item = Result<Item, BoxError>> + Send + 'static,
{
    box_log_reader(stream).unwrap_or_else(|stream| {
        let stream = ItemStream::new(stream);
        Box::pin(ApplicationStream::<S> { stream })
    })
}

/// Boxes a reader of one of our own logs: the function has one line for each type of reader. Returns any other stream as the error.
fn box_log_reader<S: 'static>(stream: S) -> Result<Pin<Box<dyn SourceStream>>, S> {
    let mut stream = Some(stream);
    let boxed = None
        .or_else(|| downcast_and_box::<channel::Subscriber>(&mut stream))
        .or_else(|| downcast_and_box::<relay::RelaySubscriber>(&mut stream))
        .or_else(|| downcast_and_box::<hub::HubSubscriber>(&mut stream));
    match (boxed, stream) {
        (Some(boxed), _) => Ok(boxed),
        (None, Some(stream)) => Err(stream),
        (None, None) => unreachable!("only a boxed stream is taken out"),
    }
}

/// Takes and boxes the stream if it is a `T`. `stream` is an `Option<S>`.
fn downcast_and_box<T: SourceStream + 'static>(
    stream: &mut dyn Any,
) -> Option<Pin<Box<dyn SourceStream>>> {
    let stream = stream.downcast_mut::<Option<T>>()?.take()?;
    Some(Box::pin(stream))
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
