//! Waiting for a condition that no future announces.

use std::{fmt::Display, time::Duration};

use tokio::time::{sleep, timeout};

use crate::TEST_TIMEOUT;

/// Checks `condition` every 2 ms until it holds. Panics after [`TEST_TIMEOUT`] with what `describe` returns then.
pub async fn wait_until<D: Display>(condition: impl Fn() -> bool, describe: impl FnOnce() -> D) {
    let wait = async move {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = timeout(TEST_TIMEOUT, wait).await;
    assert!(waited.is_ok(), "{}", describe());
}
