use std::{cell::Cell, fmt, io::IoSlice, sync::Arc};

use http::{Extensions, request::Parts};

use super::{BoxBody, DetachCounters, NotDetachedReason, wire_digest::WireDigest};
use crate::sync::{Mutex, lock};

/// The state that an HTTP/1 connection shares with the bodies of its responses. See the [module docs](super).
pub(crate) struct HandOver {
    state: Mutex<HandOverState>,
    counters: Arc<DetachCounters>,
}

struct HandOverState {
    /// The number of the current request. The first request has the number 1.
    request_number: u64,
    claim: ClaimState,
    written: WrittenResponse,
    /// Whether hyper has flushed everything that it has written or tried to write.
    is_flushed: bool,
    /// Whether all responses were complete at the last flush.
    is_idle: bool,
    stored: Option<StoredBody>,
}

/// Whether the response to the current request may be detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClaimState {
    /// No transport has claimed the offer.
    Offered,
    Claimed,
    Refused(NotDetachedReason),
}

/// The part of the response to the current request that hyper has written.
enum WrittenResponse {
    /// The head, of which the last bytes are the first `matched` bytes of [`END_OF_HEAD`].
    Head {
        matched: usize,
    },
    Body(WireDigest),
}

/// The bytes that end the head of a response, and occur nowhere else in the head.
const END_OF_HEAD: &[u8; 4] = b"\r\n\r\n";

/// A pending body, and the digest of its chunks so far.
struct StoredBody {
    request_number: u64,
    body: BoxBody,
    digest: WireDigest,
}

/// Lets a transport claim that the response to a request may be detached. Part of the request's extensions.
#[derive(Clone)]
pub(crate) struct DetachOffer(OfferKind);

/// Whether the response can be detached, and why not if it cannot. Does not change.
#[derive(Clone)]
enum OfferKind {
    Possible {
        hand_over: Arc<HandOver>,
        request_number: u64,
    },
    Refused {
        reason: NotDetachedReason,
        counters: Arc<DetachCounters>,
    },
}

/// A claimed [`DetachOffer`]. Dropping the claim counts the stream as kept by hyper, unless it was detached.
pub(crate) struct DetachClaim {
    hand_over: Arc<HandOver>,
    request_number: u64,
    is_detached: bool,
}

impl HandOver {
    pub(crate) fn new(counters: Arc<DetachCounters>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(HandOverState {
                request_number: 0,
                claim: ClaimState::Offered,
                written: WrittenResponse::Head { matched: 0 },
                is_flushed: true,
                is_idle: true,
                stored: None,
            }),
            counters,
        })
    }

    /// Records a new request. Returns the offer for its extensions.
    pub(crate) fn begin_request(self: &Arc<Self>) -> DetachOffer {
        let mut state = lock(&self.state);
        state.request_number += 1;
        state.written = WrittenResponse::Head { matched: 0 };
        let is_alone = state.is_flushed && state.is_idle && state.stored.is_none();
        state.claim = if is_alone {
            ClaimState::Offered
        } else {
            ClaimState::Refused(NotDetachedReason::EarlierResponse)
        };
        DetachOffer(OfferKind::Possible {
            hand_over: self.clone(),
            request_number: state.request_number,
        })
    }

    /// Records that hyper tries to write, and that the socket has taken the first `written` bytes of `slices`.
    pub(crate) fn on_write(&self, slices: &[IoSlice<'_>], mut written: usize) {
        let mut state = lock(&self.state);
        state.is_flushed = false;
        if state.claim != ClaimState::Claimed {
            return;
        }
        for slice in slices {
            let len = written.min(slice.len());
            state.written.add_written(&slice[..len]);
            written -= len;
        }
    }

    /// Records a flush, which hyper does when it has nothing left to write. `is_idle` is whether all responses are complete.
    pub(crate) fn on_flush(&self, is_idle: bool) {
        let mut state = lock(&self.state);
        state.is_flushed = true;
        state.is_idle = is_idle;
    }

    /// Marks the current thread as polling this connection, until the returned scope is dropped.
    pub(crate) fn enter_poll(&self) -> PolledConnectionScope {
        PolledConnectionScope {
            outer_connection: POLLED_CONNECTION.replace(self.pointer_address()),
        }
    }

    /// Takes the stored body of the response to the current request, if the bytes on the wire behind the head are exactly those that the
    /// body has produced so far.
    ///
    /// The caller then owns the connection: it must take the socket from hyper, and must not poll hyper again.
    pub(crate) fn take_detachable_body(&self) -> Option<BoxBody> {
        let mut state = lock(&self.state);
        if state.claim != ClaimState::Claimed || !state.is_flushed {
            return None;
        }
        let stored = state.stored.as_ref()?;
        if stored.request_number != state.request_number {
            return None;
        }
        if !matches!(&state.written, WrittenResponse::Body(digest) if *digest == stored.digest) {
            // The stored body stays with hyper: the `DetachableBody` takes it back when hyper polls next.
            state.claim = ClaimState::Refused(NotDetachedReason::BytesChanged);
            return None;
        }
        let stored = state.stored.take()?;
        drop(state);
        self.counters.record_detached();
        Some(stored.body)
    }

    fn pointer_address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn is_polled_by_this_thread(&self) -> bool {
        POLLED_CONNECTION.get() == self.pointer_address()
    }
}

thread_local! {
    /// The address of the [`HandOver`] whose connection this thread polls; 0 if it polls none.
    static POLLED_CONNECTION: Cell<usize> = const { Cell::new(0) };
}

/// Marks the current thread as polling a connection until the scope is dropped. Created by [`HandOver::enter_poll`].
pub(crate) struct PolledConnectionScope {
    /// The earlier value of [`POLLED_CONNECTION`]: the address of the [`HandOver`] of the connection that the thread polled; 0 if it polled
    /// none.
    outer_connection: usize,
}

impl Drop for PolledConnectionScope {
    fn drop(&mut self) {
        POLLED_CONNECTION.set(self.outer_connection);
    }
}

impl WrittenResponse {
    /// Adds bytes that hyper has written: looks for the end of the head, and then digests the body.
    fn add_written(&mut self, mut bytes: &[u8]) {
        while let Self::Head { matched } = self {
            let Some((first, rest)) = bytes.split_first() else {
                return;
            };
            bytes = rest;
            *matched = match *first {
                byte if byte == END_OF_HEAD[*matched] => *matched + 1,
                b'\r' => 1,
                _ => 0,
            };
            if *matched == END_OF_HEAD.len() {
                *self = Self::Body(WireDigest::new());
            }
        }
        if let Self::Body(digest) = self {
            digest.add(bytes);
        }
    }
}

impl DetachOffer {
    /// The offer of a request whose response cannot be detached. A claim fails, and counts the stream as kept by hyper for this reason.
    pub(crate) fn refused(reason: NotDetachedReason, counters: &Arc<DetachCounters>) -> Self {
        Self(OfferKind::Refused {
            reason,
            counters: counters.clone(),
        })
    }

    pub(crate) fn insert_into(self, extensions: &mut Extensions) {
        extensions.insert(self);
    }

    /// Takes the offer out of the extensions of `head`.
    pub(crate) fn take_from(head: &mut Parts) -> Option<Self> {
        head.extensions.remove()
    }

    /// Claims that the response may be detached. If the response may not be detached, returns `None` and counts the stream as kept by hyper.
    ///
    /// If two transports claim one request, hyper keeps both streams: a service has called the service inside it twice.
    pub(crate) fn claim(self, is_enabled: bool) -> Option<DetachClaim> {
        let (reason, counters) = match &self.0 {
            OfferKind::Refused { reason, counters } => (*reason, counters),
            OfferKind::Possible {
                hand_over,
                request_number,
            } => {
                let mut state = lock(&hand_over.state);
                let is_current = state.request_number == *request_number;
                let reason = match state.claim {
                    _ if !is_enabled => NotDetachedReason::Disabled,
                    ClaimState::Offered if is_current => {
                        state.claim = ClaimState::Claimed;
                        return Some(DetachClaim {
                            hand_over: hand_over.clone(),
                            request_number: *request_number,
                            is_detached: false,
                        });
                    }
                    ClaimState::Claimed if is_current => {
                        state.claim = ClaimState::Refused(NotDetachedReason::CalledTwice);
                        NotDetachedReason::CalledTwice
                    }
                    ClaimState::Refused(reason) if is_current => reason,
                    _ => NotDetachedReason::NotCompared,
                };
                (reason, &hand_over.counters)
            }
        };
        counters.record_not_detached(reason);
        None
    }
}

impl DetachClaim {
    /// Stores a pending body, so that the connection can take it. `digest` is that of the chunks of the body so far.
    ///
    /// # Errors
    /// Returns the body if hyper keeps it for good.
    pub(super) fn store_body(&self, body: BoxBody, digest: WireDigest) -> Result<(), BoxBody> {
        let mut state = lock(&self.hand_over.state);
        let is_claimed = state.claim == ClaimState::Claimed;
        let is_current = state.request_number == self.request_number;
        if !is_current || !is_claimed || state.stored.is_some() {
            return Err(body);
        }
        if !self.hand_over.is_polled_by_this_thread() {
            state.claim = ClaimState::Refused(NotDetachedReason::NotCompared);
            return Err(body);
        }
        state.stored = Some(StoredBody {
            request_number: self.request_number,
            body,
            digest,
        });
        Ok(())
    }

    /// Takes the stored body back. Returns `None` if the connection has taken the body.
    pub(super) fn take_back_body(&self) -> Option<BoxBody> {
        let mut state = lock(&self.hand_over.state);
        if state.stored.as_ref()?.request_number != self.request_number {
            return None;
        }
        state.stored.take().map(|stored| stored.body)
    }

    /// Records that the connection has taken the body.
    pub(super) fn on_detached(&mut self) {
        self.is_detached = true;
    }
}

impl Drop for DetachClaim {
    fn drop(&mut self) {
        if self.is_detached {
            return;
        }
        let state = lock(&self.hand_over.state);
        let reason = match state.claim {
            ClaimState::Refused(reason) if state.request_number == self.request_number => reason,
            _ => NotDetachedReason::NotCompared,
        };
        drop(state);
        self.hand_over.counters.record_not_detached(reason);
    }
}

impl fmt::Debug for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandOver").finish_non_exhaustive()
    }
}

impl fmt::Debug for DetachOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DetachOffer")
    }
}
