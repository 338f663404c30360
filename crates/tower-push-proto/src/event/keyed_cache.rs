use std::sync::OnceLock;

/// A small cache of values that are computed once: a linked list in the order of first use. A full cache keeps its values.
pub(crate) struct KeyedCache<K, T>(OnceLock<CacheEntry<K, T>>);

struct CacheEntry<K, T> {
    key: K,
    value: T,
    next: OnceLock<Box<CacheEntry<K, T>>>,
}

/// The maximum number of values in a cache.
const MAX_ENTRIES: usize = 8;

impl<K: Copy + PartialEq, T> KeyedCache<K, T> {
    /// Returns the value of `key`, which `compute` returns at the first call with this key. Returns `None` if the cache is full of other keys.
    ///
    /// Invariant: the list contains no key twice, because an entry is set once, and each search begins at the first entry. A thread
    /// that needs a value while another thread computes it waits for the other thread.
    pub(crate) fn get_or_insert_with(&self, key: K, compute: impl Fn() -> T) -> Option<&T> {
        let new_entry = || CacheEntry {
            key,
            value: compute(),
            next: OnceLock::new(),
        };
        let mut entry = self.0.get_or_init(new_entry);
        for _ in 1..MAX_ENTRIES {
            if entry.key == key {
                break;
            }
            entry = entry.next.get_or_init(|| Box::new(new_entry()));
        }
        (entry.key == key).then_some(&entry.value)
    }
}

impl<K, T> Default for KeyedCache<K, T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}
