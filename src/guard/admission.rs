use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::request::Parts;

use super::RefusalReason;
use crate::{
    random,
    sync::{Mutex, MutexGuard, lock},
};

/// Limits on how many streams may be open: in total, and for each peer, user or tenant.
///
/// A stream counts from its request until it is [closed](super#when-a-stream-is-closed). A guard refuses requests above a limit,
/// and tells the client when to reconnect. Clones share their counts, and so do all guards with the same admission.
///
/// ```
/// use std::net::SocketAddr;
/// use axum::extract::ConnectInfo;
/// use tower_push::{Guard, guard::Admission};
///
/// /// The tenant of an authenticated user. A layer around the guard sets this extension.
/// #[derive(Clone, PartialEq, Eq, Hash)]
/// struct Tenant(u64);
///
/// let admission = Admission::builder()
///     .max_streams(50_000)
///     .max_streams_per(|head| head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.ip()), 20)
///     .max_streams_per(|head| head.extensions.get::<Tenant>().cloned(), 5_000)
///     .build();
/// let guard = Guard::builder().admission(&admission).build();
/// ```
#[derive(Clone)]
pub struct Admission(Arc<AdmissionLimits>);

/// Configures an [`Admission`]. By default, the admission admits every stream.
#[must_use]
pub struct AdmissionBuilder(AdmissionLimits);

struct AdmissionLimits {
    total: Option<Arc<TotalLimit>>,
    per_key: Vec<Arc<dyn ErasedKeyLimit>>,
    retry: Duration,
}

/// A limit on all streams together.
struct TotalLimit {
    max_streams: usize,
    open_streams: AtomicUsize,
}

/// Counts one stream against the limits of an [`Admission`] until the permit is dropped.
#[derive(Default)]
pub(super) struct AdmissionPermit {
    _total: Option<TotalPermit>,
    _per_key: Vec<ErasedKeyPermit>,
}

/// Counts one stream against a [`TotalLimit`] until the permit is dropped.
struct TotalPermit(Arc<TotalLimit>);

impl Admission {
    /// Creates a builder. By default, the admission admits every stream.
    pub fn builder() -> AdmissionBuilder {
        AdmissionBuilder(AdmissionLimits {
            total: None,
            per_key: Vec::new(),
            retry: Duration::from_secs(10),
        })
    }

    /// Counts the stream of the request `head` against all limits, until the returned permit is dropped.
    ///
    /// # Errors
    /// Returns the reason for the refusal if a limit is reached.
    pub(super) fn try_acquire(&self, head: &Parts) -> Result<AdmissionPermit, RefusalReason> {
        let limits = &*self.0;
        let mut per_key = Vec::with_capacity(limits.per_key.len());
        for limit in &limits.per_key {
            let permit = limit.clone().try_acquire(head);
            per_key.extend(permit.map_err(|LimitReached| RefusalReason::Key)?);
        }
        let total = limits.total.as_ref().map(TotalLimit::try_acquire);
        let total = total.transpose();
        Ok(AdmissionPermit {
            _total: total.map_err(|LimitReached| RefusalReason::Full)?,
            _per_key: per_key,
        })
    }

    /// Returns a random time after which one refused client should reconnect: 50 to 150 % of the configured time.
    pub(super) fn random_retry_delay(&self) -> Duration {
        random::jittered(self.0.retry, 0.5)
    }
}

impl AdmissionBuilder {
    /// Sets the maximum number of open streams in total. By default there is no maximum.
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.0.total = Some(Arc::new(TotalLimit {
            max_streams: streams,
            open_streams: AtomicUsize::new(0),
        }));
        self
    }

    /// Sets the maximum number of open streams for each key. By default there is no maximum. Each call adds a limit, and all
    /// limits apply.
    ///
    /// `key` returns the key of a request, given the request's head. This limit does not apply to a request for which `key` returns
    /// `None`. The
    /// client must not be able to choose its key: use the peer's address, or a user that an outer layer has authenticated. A key
    /// is kept in memory while streams with this key are open.
    pub fn max_streams_per<F, K>(mut self, key: F, streams: usize) -> Self
    where
        F: Fn(&Parts) -> Option<K> + Send + Sync + 'static,
        K: Hash + Eq + Clone + Send + Sync + 'static,
    {
        self.0.per_key.push(Arc::new(PerKeyLimit {
            key,
            max_streams: streams,
            open_streams: Mutex::default(),
        }));
        self
    }

    /// Sets the mean time after which refused clients should reconnect. The default is 10 s. Each client gets a random time of 50
    /// to 150 % of this mean.
    pub fn retry(mut self, after: Duration) -> Self {
        self.0.retry = after;
        self
    }

    /// Builds the admission.
    pub fn build(self) -> Admission {
        Admission(Arc::new(self.0))
    }
}

/// The error of a limit that admits no more streams.
struct LimitReached;

impl TotalLimit {
    fn try_acquire(self: &Arc<Self>) -> Result<TotalPermit, LimitReached> {
        let one_more = |open| (open < self.max_streams).then_some(open + 1);
        let updated = self
            .open_streams
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more);
        match updated {
            Ok(_) => Ok(TotalPermit(self.clone())),
            Err(_) => Err(LimitReached),
        }
    }
}

impl Drop for TotalPermit {
    fn drop(&mut self) {
        self.0.open_streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A [`PerKeyLimit`] whose key type is erased.
trait ErasedKeyLimit: Send + Sync {
    /// Counts the stream of the request `head` against the limit. Returns a permit, or `None` if the request has no key.
    fn try_acquire(self: Arc<Self>, head: &Parts) -> Result<Option<ErasedKeyPermit>, LimitReached>;
}

/// A [`KeyPermit`] whose key type is erased.
type ErasedKeyPermit = Box<dyn Send + Sync>;

/// A limit on the number of open streams for each key. The function `key` returns the key of a request.
struct PerKeyLimit<F, K> {
    key: F,
    max_streams: usize,
    /// Maps each key with open streams to the number of these streams.
    open_streams: Mutex<HashMap<K, usize>>,
}

/// Counts one stream against a [`PerKeyLimit`] until the permit is dropped.
struct KeyPermit<F, K: Hash + Eq> {
    limit: Arc<PerKeyLimit<F, K>>,
    key: K,
}

impl<F, K> PerKeyLimit<F, K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        lock(&self.open_streams)
    }
}

impl<F, K> ErasedKeyLimit for PerKeyLimit<F, K>
where
    F: Fn(&Parts) -> Option<K> + Send + Sync + 'static,
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    fn try_acquire(self: Arc<Self>, head: &Parts) -> Result<Option<ErasedKeyPermit>, LimitReached> {
        let Some(key) = (self.key)(head) else {
            return Ok(None);
        };
        let mut open_streams = self.lock();
        let count = open_streams.get(&key).copied().unwrap_or_default();
        if count >= self.max_streams {
            return Err(LimitReached);
        }
        open_streams.insert(key.clone(), count + 1);
        drop(open_streams);
        Ok(Some(Box::new(KeyPermit { limit: self, key })))
    }
}

/// Tables with at most this capacity, in keys, are not shrunk.
const MIN_SHRINKABLE_CAPACITY: usize = 64;

impl<F, K: Hash + Eq> Drop for KeyPermit<F, K> {
    fn drop(&mut self) {
        let mut open_streams = self.limit.lock();
        if let Some(count) = open_streams.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open_streams.remove(&self.key);
            }
        }
        // A mostly unused table is shrunk, so that it does not keep memory after a rush of clients.
        let capacity = open_streams.capacity();
        if capacity > MIN_SHRINKABLE_CAPACITY && open_streams.len() < capacity / 4 {
            open_streams.shrink_to(capacity / 2);
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as("Admission", f)
    }
}

impl fmt::Debug for AdmissionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as("AdmissionBuilder", f)
    }
}

impl AdmissionLimits {
    fn fmt_as(&self, type_name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let max_streams = self.total.as_ref().map(|total| total.max_streams);
        f.debug_struct(type_name)
            .field("max_streams", &max_streams)
            .field("limits_per_key", &self.per_key.len())
            .field("retry", &self.retry)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(user: &str) -> Parts {
        let request = Request::get("/").header("user", user);
        request.body(()).unwrap().into_parts().0
    }

    fn user(head: &Parts) -> Option<String> {
        let user = head.headers.get("user")?.to_str().ok()?;
        (!user.is_empty()).then(|| user.to_owned())
    }

    #[test]
    fn dropped_permit_admits_another_stream() {
        let admission = Admission::builder().max_streams(2).build();
        let first = admission.try_acquire(&head("")).unwrap();
        // A clone counts together with the original.
        let _second = admission.clone().try_acquire(&head("")).unwrap();
        let third = admission.try_acquire(&head(""));
        assert_eq!(third.err(), Some(RefusalReason::Full));
        drop(first);
        assert!(admission.try_acquire(&head("")).is_ok());
    }

    #[test]
    fn keys_are_counted_separately() {
        let admission = Admission::builder().max_streams_per(user, 1).build();
        let ann = admission.try_acquire(&head("ann")).unwrap();
        let _bob = admission.try_acquire(&head("bob")).unwrap();
        let second_ann = admission.try_acquire(&head("ann"));
        assert_eq!(second_ann.err(), Some(RefusalReason::Key));
        let without_key = [(); 3].map(|()| admission.try_acquire(&head("")).unwrap());
        drop((ann, without_key));
        assert!(admission.try_acquire(&head("ann")).is_ok());
    }

    #[test]
    fn refused_stream_is_not_counted() {
        let admission = Admission::builder()
            .max_streams(1)
            .max_streams_per(user, 1)
            .build();
        let ann = admission.try_acquire(&head("ann")).unwrap();
        let bob = admission.try_acquire(&head("bob"));
        assert_eq!(bob.err(), Some(RefusalReason::Full));
        drop(ann);
        assert!(admission.try_acquire(&head("bob")).is_ok());
    }

    #[test]
    fn table_of_keys_shrinks() {
        let limit = Arc::new(PerKeyLimit {
            key: user,
            max_streams: 1,
            open_streams: Mutex::default(),
        });
        let users = (0..10_000).map(|n| limit.clone().try_acquire(&head(&n.to_string())));
        let permits: Vec<_> = users.map(|permit| permit.ok().unwrap()).collect();
        drop(permits);
        assert_eq!(limit.lock().len(), 0);
        assert!(limit.lock().capacity() <= 2 * MIN_SHRINKABLE_CAPACITY);
    }
}
