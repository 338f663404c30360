//! Counts what is alive.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;

use crate::LONG;

/// How many of something are alive.
#[derive(Clone, Debug, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    /// Returns the count.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// The stream counts from now on until it is dropped.
    pub fn around<S>(&self, stream: S) -> Counted<S> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Counted {
            stream: Box::pin(stream),
            count: self.clone(),
        }
    }

    /// Waits until the count is `wanted`. Panics after [`LONG`].
    pub async fn becomes(&self, wanted: usize) {
        let wait = async {
            while self.get() != wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        assert!(waited.is_ok(), "{} instead of {wanted}", self.get());
    }
}

/// A stream that is counted until it is dropped.
#[derive(Debug)]
pub struct Counted<S> {
    stream: Pin<Box<S>>,
    count: Count,
}

impl<S: Stream> Stream for Counted<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.count.0.fetch_sub(1, Ordering::SeqCst);
    }
}
