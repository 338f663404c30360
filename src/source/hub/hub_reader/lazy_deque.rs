use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
};

/// A [`VecDeque`] that is allocated at its first change, and takes the space of one pointer until then. For queues that are empty in most readers.
#[derive(Debug)]
#[expect(
    clippy::box_collection,
    reason = "a `VecDeque` takes the space of four pointers"
)]
pub(super) struct LazyDeque<T>(Option<Box<VecDeque<T>>>);

impl<T: 'static> LazyDeque<T> {
    const EMPTY: &'static VecDeque<T> = &VecDeque::new();

    /// Keeps the items that satisfy `predicate`.
    pub(super) fn retain(&mut self, predicate: impl FnMut(&T) -> bool) {
        if let Some(queue) = &mut self.0 {
            queue.retain(predicate);
        }
    }

    /// Appends items. Allocates nothing if there are none.
    pub(super) fn extend(&mut self, items: impl IntoIterator<Item = T>) {
        let mut items = items.into_iter().peekable();
        if items.peek().is_some() {
            self.deref_mut().extend(items);
        }
    }

    /// Frees the queue's memory if it is empty.
    pub(super) fn free_if_empty(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}

impl<T> Default for LazyDeque<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> From<VecDeque<T>> for LazyDeque<T> {
    fn from(queue: VecDeque<T>) -> Self {
        Self((!queue.is_empty()).then(|| Box::new(queue)))
    }
}

impl<T: 'static> Deref for LazyDeque<T> {
    type Target = VecDeque<T>;

    fn deref(&self) -> &VecDeque<T> {
        self.0.as_deref().unwrap_or(Self::EMPTY)
    }
}

impl<T: 'static> DerefMut for LazyDeque<T> {
    fn deref_mut(&mut self) -> &mut VecDeque<T> {
        self.0.get_or_insert_default()
    }
}
