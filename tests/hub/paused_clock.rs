//! Runs of property tests, each with a clock that goes on when nothing else does.

/// Runs a future to its end in a runtime of its own, whose clock is paused.
pub(crate) fn block_on_paused<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(future)
}
