use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

use super::{
    AnsweringSource, EarlyResponseSource, PrecededSource, Rejection, Subscription,
    ValueHoldingSource,
};
use crate::{
    BoxError,
    event::{IntoItem, Item, ItemOrRun, Payload},
};

/// A source of items for clients that subscribe to it. See the [module docs](super).
pub trait PushSource {
    /// The stream of items for one client.
    ///
    /// - `None` ends the stream, and the client may reconnect. [`Item::Ended`] also ends the stream, and contains the delay after
    ///   which the client may reconnect.
    /// - [`Item::Finished`] says that the source has finished, and the client must not reconnect.
    /// - An error disconnects the client, which sees that its stream was cut off.
    type Stream: Stream<Item = Result<Item, BoxError>> + Send + 'static;

    /// Subscribes one client, or refuses it. The response begins when the future is ready: see [`respond_early`](Self::respond_early) for
    /// sources that take long.
    ///
    /// If the client leaves before the future is ready, the future is dropped.
    fn subscribe(
        self,
        subscription: Subscription,
    ) -> impl Future<Output = Result<Self::Stream, Rejection>> + Send;

    /// Returns whether the source can resume from the cursor that a returning client sends. Only plain streams return `false`.
    ///
    /// Some transports, such as long-polling, send one stream in several responses. If the source can resume, each request subscribes
    /// to it anew. If the source cannot resume, the transport keeps the stream between the requests.
    fn is_resumable(&self) -> bool {
        true
    }

    /// Returns whether the source makes each stream for one client, as plain streams and a [`Resumable`](super::Resumable) do. The default
    /// is `true` if the source is not [resumable](Self::is_resumable), as sources over tokio's `broadcast` and `watch` are not, and
    /// otherwise `false`.
    ///
    /// A client whose stream is made for it alone expects the whole stream in one response. [`Negotiate`](crate::transport::Negotiate)
    /// therefore does not choose long-polling by the client's `Accept` header alone.
    fn is_for_one_client(&self) -> bool {
        !self.is_resumable()
    }

    /// Polls a stream of this source for the next item, or for several events at once. The default polls for the next item.
    ///
    /// A transport that can send several events at once calls this function in place of the stream's `poll_next`, and gets the same events
    /// in the same order. `min_len` is the least number of events that the transport takes as a run: 1 if it needs the positions of all
    /// events, and 2 if an [`Item`] is cheaper for a single event.
    ///
    /// A source that passes on the streams of another source without a change, as [`holding`](Self::holding) does, calls the other source's
    /// function.
    fn poll_next_run(
        stream: Pin<&mut Self::Stream>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        let _ = min_len;
        stream.poll_next(cx).map_ok(ItemOrRun::Item)
    }

    /// Returns a source whose response begins at once, without waiting until this source has accepted the subscription.
    ///
    /// A transport responds when [`subscribe`](Self::subscribe) has returned. If the subscription takes long, such as when the source first asks a
    /// model or a database, the client and the proxies on the way wait without a byte, and a timeout may fail the request. With
    /// `respond_early`, the response's head, the opening of the stream and the heartbeats are sent in the meantime.
    ///
    /// With `respond_early`, a refusal comes too late to be an HTTP status. The client gets the refusal in the stream:
    ///
    /// | the rejection's status | what the client gets | WebSocket close code |
    /// |---|---|---|
    /// | 204: the source has [finished](Rejection::finished) | [`Item::Finished`] | 1000 |
    /// | 400 to 499, except 408, 409, 425 and 429 | an end after which the client may reconnect: after the seconds of `Retry-After`, or else after 2.5 to 7.5 minutes | 4000 + status |
    /// | any other | an end after which the client may reconnect: after the seconds of `Retry-After`, or else after 2.5 to 7.5 s | 4000 + status |
    ///
    /// A refusal leaves the client's cursor where it is: a client that is accepted later resumes from its cursor. An `EventSource` keeps the time of
    /// the refusal for later failures of the network, until a stream names another time: set [`Sse::retry`](crate::transport::Sse::retry).
    ///
    /// The reason of the close frame is the rejection's message, and the code tells a client whether to reconnect: a page whose WebSocket
    /// is closed with 4403 need not try again. On transports other than WebSocket, the client does not learn the status. To tell the client
    /// more, a source yields an event of its own before it ends.
    ///
    /// [`LongPoll`](crate::transport::LongPoll) sends nothing before the first event. With or without `respond_early`, a poll waits for the
    /// subscription, also beyond its wait time, and a refusal keeps its status.
    ///
    /// The response to a WebSocket handshake names the agreed subprotocol, and is sent before the source decides.
    /// [`select_subprotocol`](Subscription::select_subprotocol) therefore returns `false`: let the transport choose the subprotocol.
    ///
    /// ```
    /// use tower_push::{Push, PushSource, source::source_fn};
    ///
    /// # async fn first_row() -> Result<u64, tower_push::source::Rejection> { Ok(1) }
    /// let slow = source_fn(async |_| {
    ///     let first = first_row().await?;
    ///     Ok(tokio_stream::iter(first..100).map(|n| n.to_string()))
    /// });
    /// let push = Push::new(slow.respond_early());
    /// # use tokio_stream::StreamExt;
    /// ```
    ///
    /// A stream that does the slow work when it is polled needs no `respond_early`, because a stream accepts every subscription at once.
    /// A source that [`Resumable::wrap`](super::Resumable::wrap) wraps responds early if the wrapped source does:
    /// `resumable.wrap(source.respond_early())`.
    ///
    /// A [`Guard`](crate::Guard) counts the stream as open from the beginning of the response, and its observers see a late refusal as the
    /// end of the stream.
    fn respond_early(self) -> EarlyResponseSource<Self>
    where
        Self: Sized + Send + 'static,
    {
        EarlyResponseSource::new(self)
    }

    /// Returns a source whose clients get the result of `make_first` before the items of this source, such as a greeting or a snapshot.
    ///
    /// A client that resumes with a cursor does not get this item again. If the client cannot resume, its stream begins with a gap, and the
    /// item follows the gap. The item does not follow a later gap: a client that falls behind while it is connected gets only the gap. If
    /// the item is a snapshot, a client that falls behind has to request the snapshot itself, or to reconnect without its cursor.
    ///
    /// `make_first` is called after this source has accepted the subscription. So a snapshot that `make_first` reads misses no event of a
    /// [`Channel`](super::Channel); the channel may repeat events that the snapshot includes. If the result is an error, the stream
    /// is cut.
    ///
    /// ```
    /// use tower_push::{Channel, Event, Push, PushSource};
    ///
    /// # async fn read_scores() -> &'static str { "[]" }
    /// fn scores(changes: &Channel) -> Push {
    ///     let snapshot = async || Event::text(read_scores().await).with_type("snapshot");
    ///     Push::new(changes.clone().preceded_by(snapshot))
    /// }
    /// ```
    fn preceded_by<F, Fut>(self, make_first: F) -> PrecededSource<Self, F>
    where
        Self: Sized + Send,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoItem,
    {
        PrecededSource::new(self, make_first)
    }

    /// Returns a source that keeps `value` as long as a client's stream is open, and drops it when the client has left.
    ///
    /// The value may be a permit, a lock, or a value whose `Drop` tells others that the client has left. A stream that is
    /// [parked](super::Resumable) keeps its value. If this source refuses the subscription, the value is dropped at once. A transport that
    /// sends one stream in several responses, such as long-polling, keeps the value between two responses only if the transport keeps
    /// the stream.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use http::StatusCode;
    /// use tokio::sync::Semaphore;
    /// use tower_push::{Push, PushSource, source::Rejection};
    ///
    /// /// A stream for one client at a time.
    /// fn exclusive(places: &Arc<Semaphore>) -> Result<Push, Rejection> {
    ///     let Ok(permit) = places.clone().try_acquire_owned() else {
    ///         return Err(Rejection::new(StatusCode::CONFLICT).message("somebody is watching"));
    ///     };
    ///     Ok(Push::new(tokio_stream::iter(["one", "two"]).holding(permit)))
    /// }
    /// ```
    fn holding<T>(self, value: T) -> ValueHoldingSource<Self, T>
    where
        Self: Sized + Send,
        T: Send + 'static,
    {
        ValueHoldingSource::new(self, value)
    }

    /// Returns a source that passes each client's messages to `answer`, and sends the client the answers among the items of this source. Only
    /// the client that has sent a message gets the answer. If `answer` returns `None`, the client gets no answer.
    ///
    /// The messages are answered in their order. The next message is read when the last one is answered, so a client that sends faster is slowed
    /// down. If the client leaves, the future of its last message and the messages after it are dropped: let clients repeat messages that
    /// must not be lost. The items of this source do not wait for an answer.
    ///
    /// An answer usually has no id. An answer with an id moves the client's cursor, and an answer such as [`Item::Finished`] ends
    /// the stream.
    ///
    /// Over a transport without messages, `answer` is not called. The source inside (`self`) gets no messages: if it accepts `HubCommands`, it
    /// gets no commands here.
    ///
    /// ```
    /// use tower_push::{Channel, Event, Push, PushSource, event::Payload};
    ///
    /// /// Publishes what each client sends to all clients. Tells the client itself what cannot be published.
    /// fn chat(room: Channel) -> Push {
    ///     let messages = room.clone();
    ///     Push::new(room.answering(move |message: Payload| {
    ///         let is_short = message.as_bytes().len() <= 1000;
    ///         let refusal = match is_short {
    ///             true => messages.publish(message).err().map(|error| error.to_string()),
    ///             false => Some("too long".to_owned()),
    ///         };
    ///         async { Some(Event::text(refusal?).with_type("refused")) }
    ///     }))
    /// }
    /// ```
    fn answering<F, Fut, T>(self, answer: F) -> AnsweringSource<Self, F>
    where
        Self: Sized + Send,
        F: FnMut(Payload) -> Fut + Send + 'static,
        Fut: Future<Output = Option<T>> + Send + 'static,
        T: IntoItem,
    {
        AnsweringSource::new(self, answer)
    }
}
