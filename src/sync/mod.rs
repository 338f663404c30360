//! Locks, atomics, and the [`WaitList`] built on them. In loom tests, loom's versions replace those of the standard library.

mod wait_list;

use std::sync::PoisonError;
#[cfg(not(all(test, tower_push_loom)))]
pub(crate) use std::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

#[cfg(all(test, tower_push_loom))]
pub(crate) use loom::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

pub(crate) use self::wait_list::{StoreWakerOutcome, WaitList, WaiterKey};

// Poisoning is ignored: no code under these locks leaves a value half changed, so that a panic in one thread need not spread to
// the others.

/// Locks a mutex, poisoned or not.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a read-write lock for reading, poisoned or not.
pub(crate) fn lock_for_reading<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a read-write lock for writing, poisoned or not.
pub(crate) fn lock_for_writing<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
