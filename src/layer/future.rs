use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Response, request::Parts};
use pin_project_lite::pin_project;

use super::{
    IntoPushOrResponse,
    push_or_response::{KeptResponseParts, PushOrResponse},
};
use crate::transport::{
    BoxResponseFuture, PushBody, Transport, add_connection_close_unless_upgraded,
    is_websocket_upgrade, respond_with_form,
};

pin_project! {
    /// The future of a [`TransportService`](super::TransportService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, T> {
        #[pin]
        state: ResponseState<F, T>,
    }
}

pin_project! {
    #[project = ResponseStateProjection]
    enum ResponseState<F, T> {
        /// The inner service has not returned its response yet.
        CallingService { #[pin] service_future: F, head: Box<Parts>, transport: Arc<T> },
        /// The inner service returned a push, and the transport subscribes to its source.
        RespondingWithPush {
            response: BoxResponseFuture,
            carrier_parts: KeptResponseParts,
            is_upgrade_request: bool,
        },
    }
}

impl<F, T> ResponseFuture<F, T> {
    pub(super) fn new(service_future: F, head: Parts, transport: Arc<T>) -> Self {
        Self {
            state: ResponseState::CallingService {
                service_future,
                head: Box::new(head),
                transport,
            },
        }
    }
}

impl<F, T, R, E> Future for ResponseFuture<F, T>
where
    F: Future<Output = Result<R, E>>,
    R: IntoPushOrResponse,
    T: Transport,
{
    type Output = Result<Response<PushBody<R::Body>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                ResponseStateProjection::CallingService {
                    service_future,
                    head,
                    transport,
                } => match ready!(service_future.poll(cx))?.into_push_or_response() {
                    PushOrResponse::Response(mut response) => {
                        add_connection_close_unless_upgraded(
                            is_websocket_upgrade(head),
                            &mut response,
                        );
                        return Poll::Ready(Ok(response.map(PushBody::from_inner)));
                    }
                    PushOrResponse::Push(push, carrier_parts) => {
                        let is_upgrade_request = is_websocket_upgrade(head);
                        let response = respond_with_form(transport, head, push);
                        state.set(ResponseState::RespondingWithPush {
                            response,
                            carrier_parts,
                            is_upgrade_request,
                        });
                    }
                },
                ResponseStateProjection::RespondingWithPush {
                    response,
                    carrier_parts,
                    is_upgrade_request,
                } => {
                    let response = ready!(response.as_mut().poll(cx));
                    let carrier_parts = std::mem::take(carrier_parts);
                    let mut response = carrier_parts.merge_into(response);
                    add_connection_close_unless_upgraded(*is_upgrade_request, &mut response);
                    return Poll::Ready(Ok(response));
                }
            }
        }
    }
}

impl<F, T> fmt::Debug for ResponseFuture<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
