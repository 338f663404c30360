//! How often a node of a hub tries again while its broker does not do what the node needs.

use std::{
    future::{Future, pending},
    time::Duration,
};

use tokio::time::timeout;
use tower_push::{
    Hub,
    source::hub::{HubBuilder, PresenceOptions, PublishOptions},
};

use crate::{BreakableProxy, HubClient, enter, wait_until};

/// The time for which the attempts are counted.
pub const TIME: Duration = Duration::from_secs(3);

/// A node without pauses makes some thousands in this time. With pauses, it makes about 40.
const MAX_ATTEMPTS: u64 = 200;

/// Returns the hub of a node that needs its broker for the events that its log does not have.
pub fn hub() -> HubBuilder {
    let presence = PresenceOptions::new().node_timeout(Duration::from_secs(1));
    Hub::builder().presence(presence).max_events(1)
}

/// Asserts that a node, whose broker is behind `proxy`, makes few attempts when the broker does not do what the node needs after `fail`: the feed,
/// members, publications and the pages of old events.
pub async fn expect_few_attempts(
    hub: &Hub,
    proxy: &BreakableProxy,
    fail: impl Future<Output = ()>,
) {
    let options = PublishOptions::default();
    let publish = || hub.publish_and_wait("news", "text", &options);
    let first = publish().await.unwrap();
    for _ in 0..10 {
        publish().await.unwrap();
    }
    let _ada = enter(hub, "ada", 1);
    let is_confirmed = || hub.counts().pending_members == 0;
    wait_until(is_confirmed, || "no answer").await;

    fail.await;
    let before = proxy.attempts();
    let _bob = enter(hub, "bob", 1);
    let mut client = HubClient::resume(hub, &["news"], &first);
    let read = async {
        while !client.next().await.starts_with("Ok(Ended") {}
        pending::<()>().await;
    };
    let all = async { tokio::join!(publish(), publish(), read) };
    assert!(timeout(TIME, all).await.is_err());
    let attempts = proxy.attempts() - before;
    assert!((2..MAX_ATTEMPTS).contains(&attempts), "{attempts} attempts");
}
