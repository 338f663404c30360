use std::{
    any::Any,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use super::{BoxItemStream, PushSource, Rejection, Subscription, source_stream::AnySourceStream};
use crate::{
    BoxError,
    event::{Gap, GapReason, ItemOrRun},
};

/// Any source, boxed as one type. Services and handlers return a `Push`.
///
/// A layer around the service, such as [`PushLayer`](crate::PushLayer), turns the push into a response.
///
/// ```
/// use tower_push::Push;
///
/// # async fn handler() -> Push {
/// Push::new(tokio_stream::iter(["any", "stream"]))
/// # }
/// ```
#[must_use = "a push does nothing until a tower-push layer turns it into a response"]
pub struct Push {
    source: Box<dyn ErasedSource>,
    #[cfg(feature = "server")]
    can_detach: bool,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

trait ErasedSource: Send {
    fn subscribe(
        self: Box<Self>,
        subscription: Subscription,
    ) -> BoxFuture<Result<AnySourceStream, Rejection>>;

    fn is_resumable(&self) -> bool;

    fn is_for_one_client(&self) -> bool;
}

impl<S: PushSource + Send + 'static> ErasedSource for S {
    fn subscribe(
        self: Box<Self>,
        subscription: Subscription,
    ) -> BoxFuture<Result<AnySourceStream, Rejection>> {
        Box::pin(async move {
            let stream = PushSource::subscribe(*self, subscription).await?;
            Ok(AnySourceStream::of_source::<S>(stream))
        })
    }

    fn is_resumable(&self) -> bool {
        PushSource::is_resumable(self)
    }

    fn is_for_one_client(&self) -> bool {
        PushSource::is_for_one_client(self)
    }
}

impl Push {
    /// Wraps a source: any stream, or another type that implements [`PushSource`]. If `source` is a `Push` already, returns it
    /// unchanged.
    pub fn new<S: PushSource + Send + 'static>(source: S) -> Self {
        let mut source = Some(source);
        let as_push = (&mut source as &mut dyn Any).downcast_mut::<Option<Self>>();
        match (as_push.and_then(Option::take), source) {
            (Some(push), _) => push,
            (None, Some(source)) => Self {
                source: Box::new(source),
                #[cfg(feature = "server")]
                can_detach: true,
            },
            (None, None) => unreachable!("only a push is taken out"),
        }
    }

    /// Sets whether the [server](crate::server) may [detach](crate::server#detached-streams) the stream from hyper: `true` by default.
    ///
    /// Set `false` if a layer acts on the body of the response after its first bytes, for example to cut it at a deadline.
    #[cfg(feature = "server")]
    #[cfg_attr(docsrs, doc(cfg(feature = "server")))]
    pub fn detach(mut self, can_detach: bool) -> Self {
        self.can_detach = can_detach;
        self
    }

    #[cfg(feature = "server")]
    pub(crate) fn can_detach(&self) -> bool {
        self.can_detach
    }
}

/// Handles two kinds of cursors for every source. A client whose cursor says that the source has finished is refused with
/// [`Rejection::finished`]. A client whose cursor is unreadable gets a [gap](Gap) first.
impl PushSource for Push {
    type Stream = BoxItemStream;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        if subscription.cursor().is_some_and(|id| id.is_finished()) {
            return Err(Rejection::finished());
        }
        let gap = subscription
            .has_unreadable_cursor()
            .then(|| Gap::new(GapReason::Epoch));
        let stream = self.source.subscribe(subscription).await?;
        Ok(BoxItemStream::new(gap, stream))
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
        stream.get_mut().poll_next_run(min_len, cx)
    }
}

impl fmt::Debug for Push {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Push").finish_non_exhaustive()
    }
}
