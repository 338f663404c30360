use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{IntoPushOrResponse, ResponseFuture};
use crate::transport::{PushBody, Transport};

/// The service that a [`TransportLayer`](super::TransportLayer) puts around another service.
///
/// See the [module docs](super) for an example.
#[must_use]
#[derive(Debug)]
pub struct TransportService<S, T> {
    inner: S,
    transport: Arc<T>,
}

impl<S, T> TransportService<S, T> {
    pub(super) fn new(inner: S, transport: Arc<T>) -> Self {
        Self { inner, transport }
    }
}

impl<S, T, B> Service<Request<B>> for TransportService<S, T>
where
    S: Service<Request<B>>,
    S::Response: IntoPushOrResponse,
    T: Transport,
{
    type Response = Response<PushBody<<S::Response as IntoPushOrResponse>::Body>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, T>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let transport_head = head.clone();
        let service_future = self.inner.call(Request::from_parts(head, body));
        ResponseFuture::new(service_future, transport_head, self.transport.clone())
    }
}

impl<S: Clone, T> Clone for TransportService<S, T> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.transport.clone())
    }
}
