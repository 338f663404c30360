//! Memory stays within its bounds, counted byte by byte. One test only: others in the process would be counted too.

mod support;

use std::alloc::System;

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http_body::Body;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::get;
use tower_push::{
    Channel, Push,
    source::Start,
    transport::{Sse, Transport},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KIB: usize = 1024;

fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}

/// A publisher faster than everyone, a thousand clients that stopped reading after the first frame, and one that reads.
#[tokio::test]
async fn a_publisher_faster_than_everyone_stays_within_the_bounds_of_the_log() {
    const LOG: usize = 256 * KIB;
    const STALLED: usize = 1000;
    let channel = Channel::builder().events(usize::MAX).bytes(LOG).build();
    let open = |channel: Channel| async move {
        let mut body = Sse::new()
            .respond(&mut get("/", &[]), Push::new(channel))
            .await
            .into_body();
        next(&mut body).await.expect("the first byte at once");
        body
    };
    let mut stalled: Vec<_> = (0..STALLED)
        .map(|_| open(channel.clone()))
        .collect::<FuturesUnordered<_>>()
        .collect()
        .await;
    let mut reading = open(channel.clone()).await;

    let region = Region::new(ALLOCATOR);
    let event = "x".repeat(KIB);
    for n in 0..20_000 {
        channel.publish(event.as_str()).unwrap();
        if n % 100 == 0 {
            next(&mut reading).await.expect("more to read");
        }
        // The log, and what the one transport in use wrote for it; a quarter for all that is around them.
        let bound = 2 * LOG + LOG / 2;
        let held = held(&region);
        assert!(held < bound, "{held} bytes held, after {n} events");
    }

    // Whoever reads again is told of the gap, and has the rest.
    let frame = next(stalled.first_mut().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&frame);
    assert!(text.starts_with("event: gap\n"), "{text}");
    assert_eq!(channel.subscribers(), STALLED + 1);
    drop((stalled, reading));
    assert_eq!(channel.subscribers(), 0);
    assert!(channel.follow(Start::Oldest).next().await.is_some());
}

async fn next<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Option<Bytes> {
    use http_body_util::BodyExt;
    let frame = body.frame().await?;
    frame.ok()?.into_data().ok()
}
