use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::Instant;

use super::{ConnectionPoll, DrivenConnection};
use crate::moving_deadline_timer::MovingDeadlineTimer;

/// The future that drives one connection in a task of its own. A connection whose source runs the application's code is driven this way.
pub(crate) struct DedicatedTask<C> {
    connection: C,
    /// Created when the connection first has a deadline. Boxed because a timer is large.
    timer: Option<Pin<Box<MovingDeadlineTimer>>>,
}

impl<C> DedicatedTask<C> {
    pub(crate) fn new(connection: C) -> Self {
        Self {
            connection,
            timer: None,
        }
    }
}

impl<C: DrivenConnection + Unpin> Future for DedicatedTask<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let poll = self.connection.poll(cx, Instant::now());
            let ConnectionPoll::Pending { deadline } = poll else {
                return Poll::Ready(());
            };
            let Some(deadline) = deadline else {
                return Poll::Pending;
            };
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(MovingDeadlineTimer::default()));
            ready!(timer.as_mut().poll(deadline, cx));
        }
    }
}
