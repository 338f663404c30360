//! Requests to a node, or to a load balancer in front of several nodes.

use std::time::{Duration, Instant};

use testkit::TEST_TIMEOUT;
use tokio::time::sleep;

/// The time after which a request is sent again. A node can be stopped while it handles a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends requests with connections that are kept.
#[derive(Clone)]
pub(crate) struct RequestSender(reqwest::Client);

impl RequestSender {
    pub(crate) fn new() -> Self {
        let client = reqwest::Client::builder().no_proxy();
        let client = client.timeout(REQUEST_TIMEOUT).build();
        Self(client.unwrap())
    }

    /// Publishes a number, again and again until it is done. The idempotency key makes this safe. Returns the event's id.
    pub(crate) async fn publish(&self, address: &str, number: u64) -> String {
        let number = number.to_string();
        let deadline = Instant::now() + 3 * TEST_TIMEOUT;
        loop {
            let request = self.0.post(format!("http://{address}/feed"));
            let request = request.header("idempotency-key", &number);
            let failure = match request.body(number.clone()).send().await {
                Ok(response) if response.status() == 200 => match response.text().await {
                    Ok(id) => return id,
                    Err(error) => error.to_string(),
                },
                Ok(response) => {
                    let status = response.status().as_u16();
                    // 502: no node can be reached. 503: the broker cannot be reached, or the node stops. 504: the node does not answer.
                    assert!([502, 503, 504].contains(&status), "{response:?}");
                    status.to_string()
                }
                Err(error) => error.to_string(),
            };
            assert!(Instant::now() < deadline, "{failure}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the readiness probe of a node has this status.
    pub(crate) async fn wait_for_readiness(&self, address: &str, expected: u16) {
        let deadline = Instant::now() + 3 * TEST_TIMEOUT;
        let url = format!("http://{address}/ready");
        loop {
            let response = self.0.get(&url).send().await;
            if response.is_ok_and(|response| response.status() == expected) {
                return;
            }
            assert!(Instant::now() < deadline, "the node is not {expected}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}
