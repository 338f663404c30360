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
