use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_push_proto::StreamEnd;

use super::{PushSource, Rejection, Subscription};
use crate::{
    BoxError,
    event::{CloseCode, CloseFrame, Item, ItemOrRun},
    random,
};

/// A source whose response begins before the source has accepted the subscription. Created by [`PushSource::respond_early`].
#[derive(Clone, Copy)]
#[must_use = "a source does nothing until a client subscribes to it"]
pub struct EarlyResponseSource<S> {
    source: S,
}

pin_project! {
    /// The items that one client of an [`EarlyResponseSource`] gets.
    #[must_use = "streams do nothing unless polled"]
    pub struct EarlyResponseStream<S> {
        #[pin]
        state: EarlyResponseState<S>,
    }
}

pin_project! {
    #[project = EarlyStateProjection]
    enum EarlyResponseState<S> {
        /// The source has not accepted or refused the subscription yet.
        Subscribing {
            subscribe_future: SubscribeFuture<S>,
            subscription: Subscription,
            // The expiry that the transport knows.
            known_expiry: Option<Instant>,
        },
        /// The source has accepted the subscription.
        Subscribed {
            #[pin]
            stream: S,
            // The timer of an expiry that the source has set, and that the transport therefore does not know.
            expiry: Option<Pin<Box<Sleep>>>,
        },
        Ended,
    }
}

type SubscribeFuture<S> = Pin<Box<dyn Future<Output = Result<S, Rejection>> + Send>>;

/// The time after which a client reconnects if its rejection names no time: 5 seconds, on average.
const DEFAULT_RETRY: Duration = Duration::from_secs(5);

/// Like [`DEFAULT_RETRY`], for a client whose next request would probably be refused again: 5 minutes, on average.
const PERMANENT_RETRY: Duration = Duration::from_secs(5 * 60);

impl<S> EarlyResponseSource<S> {
    pub(super) fn new(source: S) -> Self {
        Self { source }
    }
}

impl<S: PushSource + Send + 'static> PushSource for EarlyResponseSource<S> {
    type Stream = EarlyResponseStream<S::Stream>;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        if !subscription.can_respond_early() {
            let stream = self.source.subscribe(subscription).await?;
            let expiry = None;
            let state = EarlyResponseState::Subscribed { stream, expiry };
            return Ok(EarlyResponseStream { state });
        }
        // The transport drops the client's messages unless the source has taken them when this function returns.
        let subscription = subscription.with_begun_response();
        let state = EarlyResponseState::Subscribing {
            known_expiry: subscription.expires_at(),
            subscribe_future: Box::pin(self.source.subscribe(subscription.clone())),
            subscription,
        };
        Ok(EarlyResponseStream { state })
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
        stream.poll_with(|stream, cx| S::poll_next_run(stream, min_len, cx), cx)
    }
}

impl<S> EarlyResponseStream<S> {
    /// Returns what `poll_stream` returns once the source has accepted the subscription, or the item that ends the stream.
    fn poll_with<I: From<Item>>(
        self: Pin<&mut Self>,
        poll_stream: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<Option<Result<I, BoxError>>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<I, BoxError>>> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                EarlyStateProjection::Subscribing {
                    subscribe_future,
                    subscription,
                    known_expiry,
                } => match ready!(subscribe_future.as_mut().poll(cx)) {
                    Ok(stream) => {
                        // If the source has not taken the messages, they are dropped from now on.
                        drop(subscription.client_messages());
                        let expiry = subscription.expires_at();
                        let expiry = expiry.filter(|_| expiry != *known_expiry);
                        let expiry = expiry.map(|time| Box::pin(sleep_until(time)));
                        state.set(EarlyResponseState::Subscribed { stream, expiry });
                    }
                    Err(rejection) => {
                        state.set(EarlyResponseState::Ended);
                        return Poll::Ready(Some(Ok(refusal_item(rejection).into())));
                    }
                },
                EarlyStateProjection::Subscribed { stream, expiry } => {
                    let expired = expiry.as_mut().map(|expiry| expiry.as_mut().poll(cx));
                    if expired.is_some_and(|expired| expired.is_ready()) {
                        state.set(EarlyResponseState::Ended);
                        return Poll::Ready(Some(Ok(Item::Expired.into())));
                    }
                    return poll_stream(stream, cx);
                }
                EarlyStateProjection::Ended => return Poll::Ready(None),
            }
        }
    }
}

impl<S> Stream for EarlyResponseStream<S>
where
    S: Stream<Item = Result<Item, BoxError>>,
{
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_with(S::poll_next, cx)
    }
}

/// Returns the item that tells the client of a refusal after its response has begun. The item leaves the client's cursor where it is, so that
/// the client can resume if it is accepted later.
fn refusal_item(rejection: Rejection) -> Item {
    let (status, headers, message) = rejection.into_parts();
    if status == StatusCode::NO_CONTENT {
        return Item::Finished;
    }
    let retry = parse_retry_after(&headers).unwrap_or_else(|| {
        let average = match is_permanent_refusal(status) {
            true => PERMANENT_RETRY,
            false => DEFAULT_RETRY,
        };
        random::jittered(average, 0.5)
    });
    let end = StreamEnd::reconnect(Some(retry));
    // Statuses have three digits, so the code is between 4100 and 4999, which are for applications.
    let code = CloseCode::new(4000 + status.as_u16()).unwrap_or(CloseCode::INTERNAL_ERROR);
    Item::closed(CloseFrame::new(code, message), end)
}

/// Returns whether the same request would probably be refused again.
fn is_permanent_refusal(status: StatusCode) -> bool {
    // Not permanent are 408 Request Timeout, 409 Conflict (another client has the stream), 425 Too Early and 429 Too Many Requests.
    status.is_client_error() && !matches!(status.as_u16(), 408 | 409 | 425 | 429)
}

/// Returns the time of a `Retry-After` header in seconds. `Retry-After` may also be a date, which is ignored.
fn parse_retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

impl<S> fmt::Debug for EarlyResponseSource<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EarlyResponseSource")
            .finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for EarlyResponseStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EarlyResponseStream")
            .finish_non_exhaustive()
    }
}
