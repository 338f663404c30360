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

use super::Refusal;
use crate::{
    random,
    sync::{Mutex, MutexGuard, lock},
};

/// How many streams may be open: in total, and for each peer, user or tenant.
///
/// A stream counts from its request until nothing of it is left, whichever way it ends. Who is over the limit is refused, and told
/// when to come back. A clone counts together with the one it was made from, and so does every guard that has it.
///
/// ```
/// use std::net::{IpAddr, SocketAddr};
/// use axum::extract::ConnectInfo;
/// use tower_push::{Guard, guard::Admission};
///
/// let admission = Admission::at_most(50_000)
///     .per(|head| head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.ip()), 20)
///     .per(|head| head.headers.get("x-tenant").cloned(), 5_000);
/// let guard = Guard::new().admit(admission);
/// ```
#[derive(Clone)]
pub struct Admission {
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
    /// So many streams in total.
    pub fn at_most(streams: usize) -> Self {
        Self {
            total: Some(Arc::new(Total {
                limit: streams,
                open: AtomicUsize::new(0),
            })),
            ..Self::unlimited()
        }
    }

    /// Any number of streams in total, for limits [per key](Self::per) alone.
    pub fn unlimited() -> Self {
        Self {
            total: None,
            keys: Vec::new(),
            retry: Duration::from_secs(10),
        }
    }

    /// At most so many streams for each key, as this function finds it in the request; a request without one is not counted.
    ///
    /// The key must be what the client cannot choose: the peer's address, or what a layer in front has authenticated. Keys are
    /// kept for as long as they have open streams.
    #[must_use]
    pub fn per<F, K>(mut self, key: F, streams: usize) -> Self
    where
        F: Fn(&Parts) -> Option<K> + Send + Sync + 'static,
        K: Hash + Eq + Clone + Send + Sync + 'static,
    {
        self.keys.push(Arc::new(PerKey {
            key,
            limit: streams,
            open: Mutex::default(),
        }));
        self
    }

    /// When who is refused may come back: after 10 s by default, half of that more or less.
    #[must_use]
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry = after;
        self
    }

    pub(super) fn admit(&self, head: &Parts) -> Result<Permit, Refusal> {
        let mut keys = Vec::with_capacity(self.keys.len());
        for limit in &self.keys {
            keys.extend(limit.clone().admit(head).map_err(|Over| Refusal::Key)?);
        }
        let total = self.total.as_ref().map(Total::admit).transpose();
        Ok(Permit {
            _total: total.map_err(|Over| Refusal::Full)?,
            _keys: keys,
        })
    }

    pub(super) fn draw_retry(&self) -> Duration {
        random::around(self.retry, 0.5)
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
        f.debug_struct("Admission")
            .field("total", &self.total.as_ref().map(|total| total.limit))
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
        let admission = Admission::at_most(2);
        let one = admission.admit(&head("")).unwrap();
        // A clone counts with it.
        let _two = admission.clone().admit(&head("")).unwrap();
        assert_eq!(admission.admit(&head("")).err(), Some(Refusal::Full));
        drop(one);
        assert!(admission.admit(&head("")).is_ok());
    }

    #[test]
    fn each_key_has_its_own_count() {
        let admission = Admission::unlimited().per(user, 1);
        let ann = admission.admit(&head("ann")).unwrap();
        let _bob = admission.admit(&head("bob")).unwrap();
        assert_eq!(admission.admit(&head("ann")).err(), Some(Refusal::Key));
        let nobody = [(); 3].map(|()| admission.admit(&head("")).unwrap());
        drop((ann, nobody));
        assert!(admission.admit(&head("ann")).is_ok());
    }

    #[test]
    fn who_is_refused_takes_nobodys_place() {
        let admission = Admission::at_most(1).per(user, 1);
        let ann = admission.admit(&head("ann")).unwrap();
        assert_eq!(admission.admit(&head("bob")).err(), Some(Refusal::Full));
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
