//! Another server's feed as a source: [`RemoteSource`] and [`relay_into`].

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use http::Uri;
use tower_push::{
    EventId, Gap, GapReason, PushSource,
    event::Item,
    source::{
        Rejection, Subscription,
        relay::{PushError, RelayWriter},
    },
};

use crate::{
    client::Client,
    error::{BoxError, Error},
    event_stream::EventStream,
    item::ClientItem,
};

/// A feed of another server as a source: each client of this server gets a subscription of its own to the other server.
///
/// The ids are those of the other server, so a client resumes with the same cursor on either server. While the other server cannot be
/// reached, the clients' streams stay open without events. If a subscription fails for good, such as with the status 403, the client's stream
/// is cut.
///
/// Use [`relay_into`] for feeds with many clients: all of them share one subscription.
///
/// ```
/// use tower_push_client::{Client, RemoteSource};
///
/// let source = RemoteSource::new(Client::new(), "http://10.0.0.1:3000/prices")?;
/// let service = tower_push::service(source);
/// # let _ = service;
/// # Ok::<(), tower_push_client::Error>(())
/// ```
#[derive(Clone)]
pub struct RemoteSource {
    client: Client,
    /// The URL of the requests.
    uri: Uri,
}

impl RemoteSource {
    /// Makes the source of the feed at `url`.
    ///
    /// # Errors
    /// [`Error::is_invalid_url`], as from [`Client::subscribe`].
    pub fn new(client: Client, url: impl AsRef<str>) -> Result<Self, Error> {
        let (client, uri) = client.for_url(url.as_ref())?;
        Ok(Self { client, uri })
    }
}

impl PushSource for RemoteSource {
    type Stream = RemoteStream;

    async fn subscribe(self, subscription: Subscription) -> Result<RemoteStream, Rejection> {
        let cursor = subscription.cursor().cloned();
        let client = self.client.cursor(cursor);
        Ok(RemoteStream(EventStream::new(client, self.uri)))
    }
}

/// Without the URL, which may have a password.
impl fmt::Debug for RemoteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteSource")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// The stream of one client of a [`RemoteSource`].
#[must_use = "a stream does nothing unless it is polled"]
pub struct RemoteStream(EventStream);

impl Stream for RemoteStream {
    type Item = Result<Item, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let item = match ready!(Pin::new(&mut self.0).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(item)) => item,
            };
            return Poll::Ready(Some(Ok(match item {
                ClientItem::Event {
                    event,
                    cursor: None,
                } => Item::Event(event),
                ClientItem::Event {
                    event,
                    cursor: Some(cursor),
                } => Item::EventWithCursor { event, cursor },
                ClientItem::Gap(gap) => Item::from(gap),
                ClientItem::Cursor(cursor) => Item::Cursor(cursor),
                ClientItem::Finished => Item::Finished,
                ClientItem::Connected { .. } | ClientItem::Reconnecting { .. } => continue,
            })));
        }
    }
}

impl fmt::Debug for RemoteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteStream").field(&self.0).finish()
    }
}

/// Fills the log of a [`Relay`](tower_push::Relay) from another server's feed, until the feed has finished: all clients of the relay share one
/// subscription to the other server.
///
/// The ids are those of the other server. A gap of the other server's feed is announced to all clients of the relay, and its log restarts. In
/// place of one event that the transport from the other server cannot carry, each client gets a gap with the reason `unsupported`, and the log
/// goes on. An event whose id the relay has already is left out. Clients resume from the relay's log. A client with a cursor that is older than this log gets a gap, unless
/// the relay has an [`Upstream`](tower_push::source::relay::Upstream).
///
/// ```
/// use tower_push::Relay;
/// use tower_push_client::{Client, relay_into};
///
/// # async fn run() -> Result<(), tower_push_client::Error> {
/// let (mut writer, relay) = Relay::builder().max_events(10_000).build();
/// let service = tower_push::service(relay);
/// # let _ = service;
/// let prices = Client::new().subscribe("http://10.0.0.1:3000/prices")?;
/// tokio::spawn(async move {
///     match relay_into(prices, &mut writer).await {
///         // The other server's feed has finished: the clients must not come back.
///         Ok(()) => writer.close(),
///         // Dropping `writer` ends the clients' streams, and they come back later.
///         Err(error) => eprintln!("prices: {error}"),
///     }
/// });
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// The error that ends the subscription to the other server, or [`Error::is_malformed`] if an event has no id.
pub async fn relay_into(mut stream: EventStream, writer: &mut RelayWriter) -> Result<(), Error> {
    while let Some(item) = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
        match item? {
            ClientItem::Event { event, .. } => check_push(writer.push(event))?,
            ClientItem::Gap(gap) => match unsupported_event(&gap) {
                Some(id) => check_push(writer.push_missing(id.clone(), gap.topic))?,
                None => writer.gap(&gap),
            },
            ClientItem::Finished
            | ClientItem::Cursor(_)
            | ClientItem::Connected { .. }
            | ClientItem::Reconnecting { .. } => {}
        }
    }
    Ok(())
}

fn check_push(pushed: Result<(), PushError>) -> Result<(), Error> {
    match pushed {
        Ok(()) | Err(PushError::DuplicateId) => Ok(()),
        Err(error) => Err(Error::malformed(error)),
    }
}

/// Returns the id of the event in whose place a gap stands, because the transport cannot carry the event. Returns `None` for other gaps.
fn unsupported_event(gap: &Gap) -> Option<&EventId> {
    let is_one_event = gap.reason == GapReason::Unsupported && gap.missed == Some(1);
    gap.resumed.as_ref().filter(|_| is_one_event)
}
