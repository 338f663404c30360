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
/// A stream counts from its request until nothing of it is left, whichever way it ends. A client over the limit is refused, and told
/// when to come back. A clone counts together with the original, and so do all guards that share it.
///
/// ```
/// use std::net::{IpAddr, SocketAddr};
/// use axum::extract::ConnectInfo;
/// use tower_push::{Guard, guard::Admission};
///
/// let admission = Admission::builder()
///     .max_streams(50_000)
///     .max_streams_per(|head| head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.ip()), 20)
///     .max_streams_per(|head| head.headers.get("x-tenant").cloned(), 5_000)
///     .build();
/// let guard = Guard::builder().admission(&admission).build();
/// ```
#[derive(Clone)]
pub struct Admission(Arc<Limits>);

/// Configures an [`Admission`]. Without any setting it admits every stream.
#[must_use]
pub struct AdmissionBuilder(Limits);

struct Limits {
    total: Option<Arc<Total>>,
    keys: Vec<Arc<dyn Limit>>,
    retry: Duration,
}

struct Total {
    limit: usize,
    open: AtomicUsize,
}

/// What is counted for one open stream.
#[derive(Default)]
pub(super) struct Permit {
    /// Given back when it is dropped.
    _total: Option<Place>,
    _keys: Vec<Box<dyn Send + Sync>>,
}

struct Place(Arc<Total>);

impl Admission {
    /// Limits to configure. Without any setting they admit every stream.
    pub fn builder() -> AdmissionBuilder {
        AdmissionBuilder(Limits {
            total: None,
            keys: Vec::new(),
            retry: Duration::from_secs(10),
        })
    }

    pub(super) fn admit(&self, head: &Parts) -> Result<Permit, RefusalReason> {
        let mut keys = Vec::with_capacity(self.0.keys.len());
        for limit in &self.0.keys {
            keys.extend(
                limit
                    .clone()
                    .admit(head)
                    .map_err(|Over| RefusalReason::Key)?,
            );
        }
        let total = self.0.total.as_ref().map(Total::admit).transpose();
        Ok(Permit {
            _total: total.map_err(|Over| RefusalReason::Full)?,
            _keys: keys,
        })
    }

    pub(super) fn draw_retry(&self) -> Duration {
        random::around(self.0.retry, 0.5)
    }
}

impl AdmissionBuilder {
    /// The maximum number of open streams in total. Without it, there is no such maximum.
    pub fn max_streams(mut self, streams: usize) -> Self {
        self.0.total = Some(Arc::new(Total {
            limit: streams,
            open: AtomicUsize::new(0),
        }));
        self
    }

    /// The maximum number of open streams for each key. `key` finds the key in the head of a request; a request without a key is not
    /// counted. Each call adds a limit.
    ///
    /// The client must not be able to choose the key: use the peer's address, or what a layer in front has authenticated. A key is kept
    /// in memory while it has open streams.
    pub fn max_streams_per<F, K>(mut self, key: F, streams: usize) -> Self
    where
        F: Fn(&Parts) -> Option<K> + Send + Sync + 'static,
        K: Hash + Eq + Clone + Send + Sync + 'static,
    {
        self.0.keys.push(Arc::new(PerKey {
            key,
            limit: streams,
            open: Mutex::default(),
        }));
        self
    }

    /// The time after which a refused client should come back: 10 s by default. Each client is told a random time of half to one and a half
    /// times this.
    pub fn retry(mut self, after: Duration) -> Self {
        self.0.retry = after;
        self
    }

    /// The limits.
    pub fn build(self) -> Admission {
        Admission(Arc::new(self.0))
    }
}

/// There are too many already.
struct Over;

impl Total {
    fn admit(self: &Arc<Self>) -> Result<Place, Over> {
        let more = |open| (open < self.limit).then_some(open + 1);
        let admitted = self
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more);
        admitted.map(|_| Place(self.clone())).map_err(|_| Over)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A limit for each key, of whatever type the keys are.
trait Limit: Send + Sync {
    fn admit(self: Arc<Self>, head: &Parts) -> Result<Option<Box<dyn Send + Sync>>, Over>;
}

struct PerKey<F, K> {
    key: F,
    limit: usize,
    /// None of them is 0.
    open: Mutex<HashMap<K, usize>>,
}

struct Counted<F, K: Hash + Eq> {
    limit: Arc<PerKey<F, K>>,
    key: K,
}

impl<F, K> PerKey<F, K> {
    fn open(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        lock(&self.open)
    }
}

impl<F, K> Limit for PerKey<F, K>
where
    F: Fn(&Parts) -> Option<K> + Send + Sync + 'static,
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    fn admit(self: Arc<Self>, head: &Parts) -> Result<Option<Box<dyn Send + Sync>>, Over> {
        let Some(key) = (self.key)(head) else {
            return Ok(None);
        };
        let mut open = self.open();
        let count = open.get(&key).copied().unwrap_or_default();
        if count >= self.limit {
            return Err(Over);
        }
        open.insert(key.clone(), count + 1);
        drop(open);
        Ok(Some(Box::new(Counted { limit: self, key })))
    }
}

/// Below this, a table is not worth making smaller.
const SMALL: usize = 64;

impl<F, K: Hash + Eq> Drop for Counted<F, K> {
    fn drop(&mut self) {
        let mut open = self.limit.open();
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
        // After a rush its room is given back.
        if open.capacity() > SMALL && open.len() < open.capacity() / 4 {
            let half = open.capacity() / 2;
            open.shrink_to(half);
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("Admission", f)
    }
}

impl fmt::Debug for AdmissionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("AdmissionBuilder", f)
    }
}

impl Limits {
    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("max_streams", &self.total.as_ref().map(|total| total.limit))
            .field("keys", &self.keys.len())
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
    fn a_permit_is_given_back() {
        let admission = Admission::builder().max_streams(2).build();
        let one = admission.admit(&head("")).unwrap();
        // A clone counts with it.
        let _two = admission.clone().admit(&head("")).unwrap();
        assert_eq!(admission.admit(&head("")).err(), Some(RefusalReason::Full));
        drop(one);
        assert!(admission.admit(&head("")).is_ok());
    }

    #[test]
    fn each_key_has_its_own_count() {
        let admission = Admission::builder().max_streams_per(user, 1).build();
        let ann = admission.admit(&head("ann")).unwrap();
        let _bob = admission.admit(&head("bob")).unwrap();
        assert_eq!(
            admission.admit(&head("ann")).err(),
            Some(RefusalReason::Key)
        );
        let nobody = [(); 3].map(|()| admission.admit(&head("")).unwrap());
        drop((ann, nobody));
        assert!(admission.admit(&head("ann")).is_ok());
    }

    #[test]
    fn who_is_refused_takes_nobodys_place() {
        let admission = Admission::builder()
            .max_streams(1)
            .max_streams_per(user, 1)
            .build();
        let ann = admission.admit(&head("ann")).unwrap();
        assert_eq!(
            admission.admit(&head("bob")).err(),
            Some(RefusalReason::Full)
        );
        drop(ann);
        assert!(admission.admit(&head("bob")).is_ok());
    }

    #[test]
    fn the_table_of_keys_shrinks() {
        let limit = Arc::new(PerKey {
            key: user,
            limit: 1,
            open: Mutex::default(),
        });
        let users = (0..10_000).map(|n| limit.clone().admit(&head(&n.to_string())));
        let permits: Vec<_> = users.map(|permit| permit.ok().unwrap()).collect();
        drop(permits);
        assert_eq!(limit.open().len(), 0);
        assert!(limit.open().capacity() <= 2 * SMALL);
    }
}
