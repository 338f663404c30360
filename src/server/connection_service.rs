use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Extensions, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::connection_activity::{ConnectionActivity, OpenRequest};
use crate::{
    detach::{DetachCounters, DetachOffer, HandOver, NotDetachedReason},
    transport::websocket::WebSocketAdopter,
};

/// The service of one connection: calls the application's service with the connection's data, and records which requests are open.
#[derive(Debug)]
pub(super) struct ConnectionService<S> {
    service: TowerToHyperService<S>,
    extensions: Extensions,
    activity: Arc<ConnectionActivity>,
    detach_eligibility: DetachEligibility,
    /// Set on an HTTP/1 connection.
    websocket_adopter: Option<WebSocketAdopter>,
}

/// The responses of a connection that may be detached.
#[derive(Debug)]
pub(super) enum DetachEligibility {
    /// Responses to HTTP/1.1 requests that have no body.
    Http1(Arc<HandOver>, Arc<DetachCounters>),
    /// No response.
    Never(NotDetachedReason, Arc<DetachCounters>),
}

impl DetachEligibility {
    /// Returns the offer for the extensions of `request`.
    fn begin_request(&self, request: &Request<Incoming>) -> DetachOffer {
        match self {
            Self::Http1(hand_over, counters) => {
                let offer = hand_over.begin_request();
                if request.version() != Version::HTTP_11 {
                    DetachOffer::refused(NotDetachedReason::HttpVersion, counters)
                } else if !request.body().is_end_stream() {
                    DetachOffer::refused(NotDetachedReason::RequestBody, counters)
                } else {
                    offer
                }
            }
            Self::Never(reason, counters) => DetachOffer::refused(*reason, counters),
        }
    }
}

pin_project! {
    /// The future of a [`ConnectionService`].
    pub(super) struct TrackedResponseFuture<S>
    where
        S: Service<Request<Incoming>>,
    {
        #[pin]
        response: TowerToHyperServiceFuture<S, Request<Incoming>>,
        open_request: Option<OpenRequest>,
    }
}

pin_project! {
    /// The body of a response. The request counts as open until the body is dropped.
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: B,
        open_request: OpenRequest,
    }
}

impl<S> ConnectionService<S> {
    pub(super) fn new(
        service: S,
        extensions: Extensions,
        activity: Arc<ConnectionActivity>,
        detach_eligibility: DetachEligibility,
    ) -> Self {
        Self {
            websocket_adopter: None,
            detach_eligibility,
            service: TowerToHyperService::new(service),
            extensions,
            activity,
        }
    }
}

impl<S> ConnectionService<S> {
    /// Lets WebSockets of the connection take their socket back from hyper.
    pub(super) fn with_websocket_adopter(mut self, adopter: WebSocketAdopter) -> Self {
        self.websocket_adopter = Some(adopter);
        self
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for ConnectionService<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
{
    type Response = Response<TrackedBody<B>>;
    type Error = S::Error;
    type Future = TrackedResponseFuture<S>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let offer = self.detach_eligibility.begin_request(&request);
        let asks_for_upgrade = request.headers().contains_key(header::UPGRADE);
        let extensions = request.extensions_mut();
        if let (Some(adopter), true) = (&self.websocket_adopter, asks_for_upgrade) {
            extensions.insert(adopter.clone());
        }
        extensions.extend(self.extensions.clone());
        offer.insert_into(extensions);
        TrackedResponseFuture {
            open_request: Some(self.activity.open_request()),
            response: hyper::service::Service::call(&self.service, request),
        }
    }
}

impl<S, B> Future for TrackedResponseFuture<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Output = Result<Response<TrackedBody<B>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(cx))?;
        let Some(open_request) = this.open_request.take() else {
            // A future is not polled after it was ready.
            return Poll::Pending;
        };
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, open_request })))
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
