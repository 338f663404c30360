//! Tasks that each drive many connections.
//!
//! A task of its own costs a connection some memory, and each wake-up of the task costs time in the scheduler of tokio. An [`EventLoop`] is one
//! task for many connections. A [`Server`](crate::server::Server) has one event loop for each worker thread, and moves its detached streams and
//! its WebSockets there if their source reads logs of this crate. A connection whose source is the application's own code gets a
//! [task of its own](dedicated_task): slow code must not delay other connections.
//!
//! An event loop polls a connection when the connection's own waker is woken, or when a log changes whose [group](LogGroup) the connection has joined.
//! A stream may use both ways: a subscriber of a hub joins the groups of the topics that have many subscribers, and its other topics wake its own
//! waker.
//!
//! | file | what it has |
//! |---|---|
//! | `connection.rs` | [`DrivenConnection`]: what an event loop, or a task of its own, polls |
//! | `ready_queue.rs` | [`ReadyQueue`]: what an event loop must poll next |
//! | `connection_waker.rs` | [`ConnectionWaker`]: puts a connection into the queue |
//! | `group_memberships.rs` | [`GroupMemberships`]: the groups of one connection |
//! | `log_group.rs` | [`LogGroup`]: the connections of one event loop that read the same log, and are woken together |
//! | `timer_queue.rs` | [`TimerQueue`]: the deadlines of all connections of an event loop |
//! | `event_loop.rs` | [`EventLoop`]: the task |
//! | `event_loop_set.rs` | [`EventLoopSet`]: the event loops of a server, to which connections are spread |
//! | `dedicated_task.rs` | [`DedicatedTask`]: a task for one connection |
//!
//! # Fairness
//! A poll of a connection is bounded by the connection. In one round, an event loop polls each connection at most once for its own waker and once for
//! each of its logs that has changed, before it polls any of them again. The event loop returns to the scheduler after
//! [`MAX_POLLS_PER_TURN`](event_loop::MAX_POLLS_PER_TURN) polls. So a source that never pauses, a client that never reads and a client that
//! floods the server delay the other connections by one poll per round. A log that changes all the time delays the readers of other logs by one
//! poll of each of its readers per round.
//!
//! # Invariant: no wake-up is lost
//! - Waking a connection puts its [`ConnectionWaker`] into the [`ReadyQueue`] under the queue's lock, unless the waker is there already. The event loop
//!   clears the mark of a waker before it polls the connection, and stores its own waker only under the same lock, while the queue is empty.
//! - [`LogGroup`] describes why no reader of a log sleeps through an event.
//!
//! `loom_tests.rs` tries every order of these steps.

mod connection;
#[cfg(feature = "server")]
mod connection_waker;
mod dedicated_task;
#[cfg(feature = "server")]
#[expect(clippy::module_inception, reason = "the file has the type `EventLoop`")]
mod event_loop;
#[cfg(feature = "server")]
mod event_loop_set;
#[cfg(feature = "server")]
mod group_memberships;
#[cfg(feature = "server")]
mod log_group;
#[cfg(all(test, feature = "server", tower_push_loom))]
mod loom_tests;
#[cfg(feature = "server")]
mod ready_queue;
#[cfg(all(test, feature = "server", not(tower_push_loom)))]
mod tests;
#[cfg(feature = "server")]
mod timer_queue;

#[cfg(feature = "server")]
pub(crate) use self::{connection::TakenOutput, event_loop_set::EventLoopSet};
pub(crate) use self::{
    connection::{ConnectionPoll, DrivenConnection},
    dedicated_task::DedicatedTask,
};
