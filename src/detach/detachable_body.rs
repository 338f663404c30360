use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::{BoxBody, DetachClaim, wire_digest::WireDigest};
use crate::BoxError;

/// A body that lends its inner body to its connection whenever the inner body is pending.
pub(crate) struct DetachableBody {
    /// `None` while the inner body is stored, and after the connection has taken it.
    body: Option<BoxBody>,
    claim: DetachClaim,
    /// The digest of the chunks that hyper must write for the frames so far. `None` if hyper keeps the body for good.
    digest: Option<WireDigest>,
}

impl DetachableBody {
    pub(crate) fn new(body: BoxBody, claim: DetachClaim) -> Self {
        Self {
            body: Some(body),
            claim,
            digest: Some(WireDigest::new()),
        }
    }
}

impl Body for DetachableBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let Some(mut body) = this.body.take().or_else(|| this.claim.take_back_body()) else {
            // The connection has taken the inner body, and drops this body.
            return Poll::Pending;
        };
        match body.as_mut().poll_frame(cx) {
            Poll::Pending => {
                match this.digest {
                    // Before the body's first bytes, there is nothing to compare.
                    Some(digest) if !digest.is_empty() => {
                        if let Err(body) = this.claim.store_body(body, digest) {
                            this.body = Some(body);
                            this.digest = None;
                        }
                    }
                    _ => this.body = Some(body),
                }
                Poll::Pending
            }
            Poll::Ready(frame) => {
                if let (Some(digest), Some(Ok(frame))) = (&mut this.digest, &frame) {
                    if let Some(data) = frame.data_ref() {
                        digest.add_chunk(data);
                    }
                }
                this.body = Some(body);
                Poll::Ready(frame)
            }
        }
    }
}

impl Drop for DetachableBody {
    fn drop(&mut self) {
        if self.body.is_none() {
            self.body = self.claim.take_back_body();
            if self.body.is_none() {
                self.claim.on_detached();
            }
        }
    }
}

#[cfg(all(test, tower_push_loom))]
impl DetachableBody {
    /// Returns whether the body has its inner body.
    pub(super) fn has_inner(&self) -> bool {
        self.body.is_some()
    }
}
