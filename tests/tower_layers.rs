//! What the well-known layers around a push do to it: timeouts and limits of tower and tower-http. The clock stands still but
//! for what waits for it.

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

/// A stream that only has heartbeats: one in 15 seconds, or a tenth more.
fn idle() -> SourceService<Channel> {
    tower_push::service(Channel::new())
}

fn without_heartbeats() -> SourceService<Channel> {
    let sse = Sse::new().keep_alive(KeepAlive::disabled());
    idle().transport(Negotiate::new().add_transport(sse))
}

async fn ask<S, B>(service: S, transport: &str) -> Response<B>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
{
    let uri = format!("/?transport={transport}");
    service
        .oneshot(empty_request("GET", &uri, &[]))
        .await
        .unwrap()
}

/// For how long a body is good: until it ends or fails, or for an hour.
async fn lasts(body: impl Body<Data = Bytes>) -> Duration {
    let mut body = pin!(body);
    let start = Instant::now();
    let reading = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(HOUR, reading).await;
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_response_does_not_touch_a_stream() {
    let layer = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SECOND);
    let response = ask(layer.layer(idle()), "sse").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(lasts(response.into_body()).await >= HOUR);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_response_fails_a_long_poll_that_waits_longer() {
    let status = StatusCode::REQUEST_TIMEOUT;
    for (time, expected) in [(10 * SECOND, status), (60 * SECOND, StatusCode::OK)] {
        let layer = TimeoutLayer::with_status_code(status, time);
        let response = ask(layer.layer(idle()), "long-poll").await;
        assert_eq!(response.status(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_responses_body_cuts_a_stream_whose_heartbeats_are_rarer() {
    let lasting = async |time, service| {
        let layer = ResponseBodyTimeoutLayer::new(time);
        lasts(ask(layer.layer(service), "sse").await.into_body()).await
    };
    assert!(lasting(60 * SECOND, idle()).await >= HOUR);
    assert!(lasting(10 * SECOND, idle()).await < 11 * SECOND);
    assert!(lasting(60 * SECOND, without_heartbeats()).await < 61 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_the_responses_body_cuts_every_stream() {
    let layer = ResponseBodyDeadlineLayer::new(60 * SECOND);
    let response = ask(layer.layer(idle()), "sse").await;
    assert!(lasts(response.into_body()).await < 61 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn limits_of_the_request_do_not_touch_a_stream() {
    let layers = (
        RequestBodyTimeoutLayer::new(SECOND),
        RequestBodyLimitLayer::new(0),
    );
    let response = ask(layers.layer(idle()), "sse").await;
    assert!(lasts(response.into_body()).await >= HOUR);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_concurrency_does_not_count_streams() {
    let service = ConcurrencyLimitLayer::new(1).layer(idle());
    let first = ask(service.clone(), "sse").await;
    let second = ask(service, "sse").await;
    assert_eq!(second.status(), StatusCode::OK);
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_concurrency_counts_long_polls_while_they_wait() {
    let service = ConcurrencyLimitLayer::new(1).layer(idle());
    let waiting = tokio::spawn({
        let service = service.clone();
        async move { ask(service, "long-poll").await.status() }
    });
    tokio::task::yield_now().await;
    assert!(timeout(SECOND, ask(service.clone(), "sse")).await.is_err());
    waiting.await.unwrap();
    ask(service, "sse").await;
}

/// Its body is complete.
#[tokio::test(start_paused = true)]
async fn timeouts_of_bodies_do_not_touch_a_long_poll() {
    let layers = (
        ResponseBodyTimeoutLayer::new(SECOND),
        ResponseBodyDeadlineLayer::new(SECOND),
        RequestBodyTimeoutLayer::new(SECOND),
        RequestBodyLimitLayer::new(0),
    );
    let start = Instant::now();
    let response = ask(layers.layer(idle()), "long-poll").await;
    assert!(start.elapsed() > SECOND);
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await;
    assert!(body.is_ok());
}
