use std::{
    fmt,
    task::{Context, Poll},
};

use http::{Request, Response};
use reqwest::Body;
use tower_service::Service;

use crate::http_service::BoxFuture;

/// reqwest's client as the HTTP service of a [`Client`](crate::Client).
///
/// reqwest follows redirects itself, by its own policy. A reqwest client for WebSockets must use HTTP/1.1
/// (`reqwest::ClientBuilder::http1_only`).
///
/// ```
/// use tower_push_client::{Client, ReqwestService};
///
/// let client = Client::with_service(ReqwestService::new(reqwest::Client::new()));
/// # let _ = client;
/// ```
#[derive(Clone)]
pub struct ReqwestService(reqwest::Client);

impl ReqwestService {
    /// Makes the service. The reqwest client must not have a timeout for whole responses, because a feed has no end. It should have a
    /// `connect_timeout`, which reqwest does not set by default.
    pub fn new(client: reqwest::Client) -> Self {
        Self(client)
    }
}

impl Service<Request<Body>> for ReqwestService {
    type Response = Response<Body>;
    type Error = reqwest::Error;
    type Future = BoxFuture<Result<Response<Body>, reqwest::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), reqwest::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move {
            let response = async {
                let request = reqwest::Request::try_from(request)?;
                client.execute(request).await
            };
            // The URL can contain a password or a token.
            let response = response.await.map_err(reqwest::Error::without_url);
            response.map(Response::from)
        })
    }
}

impl fmt::Debug for ReqwestService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReqwestService").finish()
    }
}
