use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Body, Frame};
use tower_service::Service;

use crate::error::BoxError;

/// A boxed future.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A boxed body of a response.
pub(crate) type ResponseBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// Any HTTP client as one type.
#[derive(Clone)]
pub(crate) struct HttpService(Arc<dyn SendRequest>);

trait SendRequest: Send + Sync {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<Result<Response<ResponseBody>, BoxError>>;
}

impl HttpService {
    pub(crate) fn new<S, B, R>(service: S) -> Self
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: From<Bytes> + Send + 'static,
        R: Body + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let send = move |request: Request<Bytes>| -> BoxFuture<_> {
            let mut service = service.clone();
            Box::pin(async move {
                poll_fn(|cx| service.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                let response = service.call(request.map(B::from)).await;
                let response = response.map_err(Into::into)?;
                Ok(response.map(|body| Box::pin(BoxErrorBody(Box::pin(body))) as ResponseBody))
            })
        };
        Self(Arc::new(SendRequestFn(send)))
    }

    pub(crate) fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<Result<Response<ResponseBody>, BoxError>> {
        self.0.send(request)
    }
}

impl fmt::Debug for HttpService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpService").finish_non_exhaustive()
    }
}

struct SendRequestFn<F>(F);

impl<F> SendRequest for SendRequestFn<F>
where
    F: Fn(Request<Bytes>) -> BoxFuture<Result<Response<ResponseBody>, BoxError>> + Send + Sync,
{
    fn send(&self, request: Request<Bytes>) -> BoxFuture<Result<Response<ResponseBody>, BoxError>> {
        (self.0)(request)
    }
}

/// A body whose data are `Bytes` and whose errors are boxed.
struct BoxErrorBody<B>(Pin<Box<B>>);

impl<B> Body for BoxErrorBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.as_mut().poll_frame(cx).map(|frame| {
            let frame = frame?.map_err(Into::into);
            // `Bytes` are not copied.
            Some(frame.map(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))))
        })
    }
}
