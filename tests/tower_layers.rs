//! What the timeout and limit layers of tower and tower-http do to a push. The clock is paused: it advances only while every task waits
//! for a timer.

use std::{convert::Infallible, pin::pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use testkit::empty_request;
use tokio::time::{Instant, timeout};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_http::{
    limit::RequestBodyLimitLayer,
    timeout::{
        RequestBodyTimeoutLayer, ResponseBodyDeadlineLayer, ResponseBodyTimeoutLayer, TimeoutLayer,
    },
};
use tower_push::{
    Channel, KeepAlive,
    layer::SourceService,
    transport::{Negotiate, Sse},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// A service whose streams have only heartbeats, one every 15 to 16.5 seconds.
fn idle_service() -> SourceService<Channel> {
    tower_push::service(Channel::new())
}

/// A service whose streams have no heartbeats either.
fn idle_service_without_heartbeats() -> SourceService<Channel> {
    let sse = Sse::new().keep_alive(KeepAlive::disabled());
    idle_service().transport(Negotiate::new().add_transport(sse))
}

/// Sends a request for a transport.
async fn send_request<S, B>(service: S, transport: &str) -> Response<B>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
{
    let uri = format!("/?transport={transport}");
    service
        .oneshot(empty_request("GET", &uri, &[]))
        .await
        .unwrap()
}

/// Reads a body until it ends or fails, for at most an hour, and returns for how long.
async fn body_lifetime(body: impl Body<Data = Bytes>) -> Duration {
    let mut body = pin!(body);
    let start = Instant::now();
    let reading = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(HOUR, reading).await;
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn response_timeout_leaves_streams_alone() {
    let layer = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SECOND);
    let response = send_request(layer.layer(idle_service()), "sse").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(body_lifetime(response.into_body()).await >= HOUR);
}

#[tokio::test(start_paused = true)]
async fn response_timeout_fails_longer_long_polls() {
    let status = StatusCode::REQUEST_TIMEOUT;
    for (time, expected) in [(10 * SECOND, status), (60 * SECOND, StatusCode::OK)] {
        let layer = TimeoutLayer::with_status_code(status, time);
        let response = send_request(layer.layer(idle_service()), "long-poll").await;
        assert_eq!(response.status(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn body_timeout_cuts_streams_with_rarer_heartbeats() {
    let stream_lifetime = async |time, service| {
        let layer = ResponseBodyTimeoutLayer::new(time);
        body_lifetime(send_request(layer.layer(service), "sse").await.into_body()).await
    };
    assert!(stream_lifetime(60 * SECOND, idle_service()).await >= HOUR);
    assert!(stream_lifetime(10 * SECOND, idle_service()).await < 11 * SECOND);
    assert!(stream_lifetime(60 * SECOND, idle_service_without_heartbeats()).await < 61 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn body_deadline_cuts_every_stream() {
    let layer = ResponseBodyDeadlineLayer::new(60 * SECOND);
    let response = send_request(layer.layer(idle_service()), "sse").await;
    assert!(body_lifetime(response.into_body()).await < 61 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn request_limits_leave_streams_alone() {
    let layers = (
        RequestBodyTimeoutLayer::new(SECOND),
        RequestBodyLimitLayer::new(0),
    );
    let response = send_request(layers.layer(idle_service()), "sse").await;
    assert!(body_lifetime(response.into_body()).await >= HOUR);
}

#[tokio::test(start_paused = true)]
async fn concurrency_limit_ignores_streams() {
    let service = ConcurrencyLimitLayer::new(1).layer(idle_service());
    let first = send_request(service.clone(), "sse").await;
    let second = send_request(service, "sse").await;
    assert_eq!(second.status(), StatusCode::OK);
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn concurrency_limit_counts_waiting_long_polls() {
    let service = ConcurrencyLimitLayer::new(1).layer(idle_service());
    let waiting = tokio::spawn({
        let service = service.clone();
        async move { send_request(service, "long-poll").await.status() }
    });
    tokio::task::yield_now().await;
    assert!(
        timeout(SECOND, send_request(service.clone(), "sse"))
            .await
            .is_err()
    );
    waiting.await.unwrap();
    send_request(service, "sse").await;
}

/// The body of a long-poll response is complete when the response begins, so timeouts of bodies cannot expire.
#[tokio::test(start_paused = true)]
async fn body_timeouts_leave_long_polls_alone() {
    let layers = (
        ResponseBodyTimeoutLayer::new(SECOND),
        ResponseBodyDeadlineLayer::new(SECOND),
        RequestBodyTimeoutLayer::new(SECOND),
        RequestBodyLimitLayer::new(0),
    );
    let start = Instant::now();
    let response = send_request(layers.layer(idle_service()), "long-poll").await;
    assert!(start.elapsed() > SECOND);
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await;
    assert!(body.is_ok());
}
