use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Extensions, HeaderMap, Response, request::Parts};
use pin_project_lite::pin_project;

use super::{
    IntoPushOrResponse,
    carrier::{PushOrResponse, merge},
};
use crate::transport::{PushBody, Responding, Transport};

pin_project! {
    /// The future of a [`TransportService`](super::TransportService).
    pub struct ResponseFuture<F, T> {
        #[pin]
        state: State<F, T>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, T> {
        /// The service behind the layer is at work.
        Asking { #[pin] answer: F, head: Box<Parts>, transport: Arc<T> },
        /// It answered with a push.
        Responding { responding: Responding, headers: HeaderMap, extensions: Extensions },
    }
}

impl<F, T> ResponseFuture<F, T> {
    pub(super) fn new(answer: F, head: Parts, transport: Arc<T>) -> Self {
        Self {
            state: State::Asking {
                answer,
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
                StateProjection::Asking {
                    answer,
                    head,
                    transport,
                } => match ready!(answer.poll(cx))?.into_push_or_response() {
                    PushOrResponse::Response(response) => {
                        return Poll::Ready(Ok(response.map(PushBody::inner)));
                    }
                    PushOrResponse::Push(push, headers, extensions) => {
                        let responding = transport.respond(head, push);
                        state.set(State::Responding {
                            responding,
                            headers,
                            extensions,
                        });
                    }
                },
                StateProjection::Responding {
                    responding,
                    headers,
                    extensions,
                } => {
                    let response = ready!(responding.as_mut().poll(cx));
                    let (headers, extensions) =
                        (std::mem::take(headers), std::mem::take(extensions));
                    return Poll::Ready(Ok(merge(response, headers, extensions)));
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
