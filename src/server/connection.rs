use std::{
    future::{Future, poll_fn},
    io::{self, ErrorKind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Extensions, Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    upgrade::{Parts, Upgraded},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};
use tower_service::Service;

use super::{
    SharedServer,
    connection_activity::{AwaitedInput, ConnectionActivity},
    connection_io::{ConnectionIo, Http1IoObservers},
    connection_permit::ConnectionPermit,
    connection_service::{ConnectionService, DetachEligibility},
    detached_stream::DetachedStream,
    drain_deadline::DrainDeadline,
    http_version::{HttpVersion, read_http_version},
    serve::wait_unless_drain_starts,
    server_counts::increment,
    upgraded_socket::UpgradedSocket,
};
use crate::{
    BoxError,
    deadline::earlier,
    detach::{BoxBody, HandOver, NotDetachedReason},
    event_loop::{DedicatedTask, DrivenConnection, EventLoopSet},
    guard::{Drain, DrainStartWaiter},
    moving_deadline_timer::MovingDeadlineTimer,
    source::EventLoopJoin,
    transport::{
        DetachedOutput,
        websocket::{SessionDriver, WebSocketAdopter},
    },
};

/// A connection that was accepted, and the settings with which its requests are served.
pub(super) struct AcceptedConnection<IO> {
    pub(super) io: IO,
    pub(super) permit: ConnectionPermit,
    /// The drain at whose start the connection is shut down.
    pub(super) drain: Option<Drain>,
    /// The extensions that each request of the connection gets.
    pub(super) extensions: Extensions,
}

impl<IO> AcceptedConnection<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Serves the requests of the connection, until it is closed or upgraded.
    ///
    /// # Errors
    /// Fails if the client disconnects during a request, violates the protocol, or exceeds a timeout.
    pub(super) async fn serve<S, B>(
        self,
        server: Arc<SharedServer>,
        service: S,
    ) -> Result<(), BoxError>
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let mut io = self.io;
        let drain = self.drain.as_ref().map(DrainStartWaiter::new);
        let version = timeout(
            server.settings.header_read_timeout,
            read_http_version(&mut io),
        );
        let Ok(version) = wait_unless_drain_starts(drain.as_ref(), version).await else {
            return Ok(());
        };
        let Ok(version) = version else {
            increment(&server.counters.timed_out_heads);
            return Err(timed_out("the client sent no request"));
        };
        let (version, unread) = version?;
        let activity = Arc::new(ConnectionActivity::new());
        let counters = server.detach_counters.clone();
        let (hand_over, detach_eligibility) = match version {
            _ if !server.settings.can_detach => (
                None,
                DetachEligibility::Never(NotDetachedReason::Disabled, counters),
            ),
            HttpVersion::Http1 => {
                let hand_over = HandOver::new(counters.clone());
                (
                    Some(hand_over.clone()),
                    DetachEligibility::Http1(hand_over, counters),
                )
            }
            HttpVersion::Http2 => (
                None,
                DetachEligibility::Never(NotDetachedReason::HttpVersion, counters),
            ),
        };
        let extensions = self.extensions;
        let service =
            ConnectionService::new(service, extensions, activity.clone(), detach_eligibility);
        let io = ConnectionIo::new(io, unread, self.permit);
        match version {
            HttpVersion::Http1 => {
                let io = io.with_http1_observers(Http1IoObservers {
                    activity: activity.clone(),
                    hand_over: hand_over.clone(),
                });
                let io = TokioIo::new(io);
                let (shared, server_drain) = (server.clone(), self.drain);
                let adopter = WebSocketAdopter::new(move |upgraded, driver| {
                    adopt_websocket::<IO>(&shared, server_drain.as_ref(), upgraded, driver)
                });
                let service = service.with_websocket_adopter(adopter);
                let connection = server.http1.serve_connection(io, service).with_upgrades();
                let mut driver =
                    ConnectionDriver::new(connection, version, activity, drain, server);
                driver.hand_over = hand_over;
                // Boxed, because hyper's connection would enlarge the future that reads the version.
                Box::pin(driver.serve_http1()).await
            }
            HttpVersion::Http2 => {
                activity.stop_awaiting_head();
                let connection = server.http2.serve_connection(TokioIo::new(io), service);
                let mut driver =
                    ConnectionDriver::new(connection, version, activity, drain, server);
                Box::pin(async move { driver.run().await.map(|_| ()) }).await
            }
        }
    }
}

/// A connection of hyper.
trait HyperConnection: Future<Output = hyper::Result<()>> + Unpin {
    /// Ends the connection when its open requests are complete.
    fn graceful_shutdown(&mut self);
}

impl<IO, S, B> HyperConnection for http1::UpgradeableConnection<TokioIo<IO>, ConnectionService<S>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    fn graceful_shutdown(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

impl<IO, S, B> HyperConnection
    for http2::Connection<TokioIo<IO>, ConnectionService<S>, TokioExecutor>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    fn graceful_shutdown(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

/// The way in which hyper's part of a connection has ended.
enum HyperOutcome {
    /// The connection is closed, or upgraded.
    Closed,
    /// The body of the response must leave hyper, and the connection with it.
    Detached(BoxBody),
}

/// Polls a connection, and ends it after a timeout or when a drain starts.
struct ConnectionDriver<C> {
    connection: C,
    version: HttpVersion,
    activity: Arc<ConnectionActivity>,
    drain: Option<DrainStartWaiter>,
    /// The time at which the connection is cut. Set once the drain has started.
    drain_deadline: Option<Instant>,
    is_shutting_down: bool,
    /// Set on an HTTP/1 connection whose streams may leave hyper.
    hand_over: Option<Arc<HandOver>>,
    server: Arc<SharedServer>,
}

impl<IO, S, B>
    ConnectionDriver<http1::UpgradeableConnection<TokioIo<ConnectionIo<IO>>, ConnectionService<S>>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    /// Serves the connection until hyper has closed it, or until a task of its own continues the response.
    async fn serve_http1(mut self) -> Result<(), BoxError> {
        let HyperOutcome::Detached(mut body) = self.run().await? else {
            return Ok(());
        };
        let Some(parts) = self.connection.into_parts() else {
            // An upgraded connection has no body.
            return Ok(());
        };
        let (io, permit) = parts.io.into_inner().into_parts();
        let read_ahead_len = parts.read_buf.len();
        let output = body.as_mut().take_output();
        let Some(mut output) = output.and_then(|output| output.downcast::<DetachedOutput>().ok())
        else {
            // Never the case: the transports give only bodies whose output is a `DetachedOutput` to the hand-over.
            return Ok(());
        };
        drop(body);
        let fit = output.join_event_loop();
        let stream = DetachedStream::new(io, *output, read_ahead_len, permit);
        drive(&self.server, stream, self.drain, fit);
        Ok(())
    }
}

/// Takes the socket of a WebSocket back from hyper, takes the driver, and lets an event loop or a task of its own drive the connection.
///
/// # Errors
/// Returns the socket, and leaves the driver, if the socket is not one of a connection of this server with this `IO`.
fn adopt_websocket<IO>(
    server: &Arc<SharedServer>,
    drain: Option<&Drain>,
    upgraded: Upgraded,
    driver: &mut Option<SessionDriver>,
) -> Result<(), Upgraded>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Parts { io, read_buf, .. } = upgraded.downcast::<TokioIo<ConnectionIo<IO>>>()?;
    let Some(mut driver) = driver.take() else {
        return Ok(());
    };
    let (io, permit) = io.into_inner().into_parts();
    driver.set_first_input(&read_buf);
    // hyper's buffer is freed before the connection is moved to an allocation of its own. Otherwise this allocation would lie behind the
    // buffer, and the freed memory would stay fragmented.
    drop(read_buf);
    let fit = driver.join_event_loop();
    let socket = UpgradedSocket {
        io: TokioIo::new(io),
        _permit: permit,
    };
    let connection = driver.into_connection(socket);
    let drain = drain.map(DrainStartWaiter::new);
    drive(server, connection, drain, fit);
    Ok(())
}

/// Lets an event loop or a task of its own drive the connection, until the deadline of the drain at the latest.
fn drive<C>(
    server: &Arc<SharedServer>,
    connection: C,
    drain: Option<DrainStartWaiter>,
    fit: EventLoopJoin,
) where
    C: DrivenConnection + Unpin + 'static,
{
    match drain {
        Some(drain) => {
            let connection = DrainDeadline::new(connection, drain, server.clone());
            spawn(&server.event_loops, connection, fit);
        }
        None => spawn(&server.event_loops, connection, fit),
    }
}

fn spawn<C>(event_loops: &EventLoopSet, connection: C, fit: EventLoopJoin)
where
    C: DrivenConnection + Unpin + 'static,
{
    match fit {
        EventLoopJoin::Joined(logs) => event_loops.insert(connection, logs),
        EventLoopJoin::NeedsOwnTask => {
            tokio::spawn(DedicatedTask::new(connection));
        }
    }
}

impl<C: HyperConnection> ConnectionDriver<C> {
    fn new(
        connection: C,
        version: HttpVersion,
        activity: Arc<ConnectionActivity>,
        drain: Option<DrainStartWaiter>,
        server: Arc<SharedServer>,
    ) -> Self {
        Self {
            connection,
            version,
            activity,
            drain,
            drain_deadline: None,
            is_shutting_down: false,
            hand_over: None,
            server,
        }
    }

    async fn run(&mut self) -> Result<HyperOutcome, BoxError> {
        let mut timer = pin!(MovingDeadlineTimer::default());
        poll_fn(|cx| self.poll(timer.as_mut(), cx)).await
    }

    fn poll(
        &mut self,
        mut timer: Pin<&mut MovingDeadlineTimer>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<HyperOutcome, BoxError>> {
        loop {
            self.poll_drain_start(cx);
            let scope = self
                .hand_over
                .as_ref()
                .map(|hand_over| hand_over.enter_poll());
            let poll = Pin::new(&mut self.connection).poll(cx);
            drop(scope);
            if let Poll::Ready(result) = poll {
                return Poll::Ready(result.map(|()| HyperOutcome::Closed).map_err(Into::into));
            }
            let hand_over = self.hand_over.as_ref();
            if let Some(body) = hand_over.and_then(|hand_over| hand_over.take_detachable_body()) {
                return Poll::Ready(Ok(HyperOutcome::Detached(body)));
            }
            let Some(deadline) = self.next_deadline() else {
                return Poll::Pending;
            };
            ready!(timer.as_mut().poll(deadline, cx));
            self.enforce_timeouts()?;
        }
    }

    /// Shuts the connection down once the drain has started.
    fn poll_drain_start(&mut self, cx: &mut Context<'_>) {
        let drain = self.drain.as_ref();
        let Some(drain) = drain.filter(|_| self.drain_deadline.is_none()) else {
            return;
        };
        if let Poll::Ready(deadline) = drain.poll_start(cx) {
            self.drain_deadline = Some(deadline);
            self.shut_down();
        }
    }

    fn shut_down(&mut self) {
        if !std::mem::replace(&mut self.is_shutting_down, true) {
            self.connection.graceful_shutdown();
        }
    }

    /// Returns when [`enforce_timeouts`](Self::enforce_timeouts) must be called next.
    fn next_deadline(&self) -> Option<Instant> {
        let settings = &self.server.settings;
        let deadline = match self.activity.awaited_input() {
            Some(AwaitedInput::RestOfHead(since)) => Some(since + settings.header_read_timeout),
            Some(AwaitedInput::NextRequest(_)) if self.is_shutting_down => None,
            Some(AwaitedInput::NextRequest(since)) => Some(since + settings.idle_timeout),
            // The requests of HTTP/2 end in tasks of their own, which do not wake this task.
            None if self.version == HttpVersion::Http2 => {
                Some(Instant::now() + settings.idle_timeout)
            }
            None => None,
        };
        earlier(deadline, self.drain_deadline)
    }

    /// Enforces the deadline of the drain, the timeout for the head of a request, and the idle timeout. At the idle timeout, the connection is shut
    /// down gracefully.
    ///
    /// # Errors
    /// Fails at the deadline of the drain, and at the timeout for the head of a request: the connection must be closed at once.
    fn enforce_timeouts(&mut self) -> Result<(), BoxError> {
        let now = Instant::now();
        if self.drain_deadline.is_some_and(|deadline| deadline <= now) {
            increment(&self.server.counters.cut_connections);
            return Err(timed_out("the connection was open at the drain's deadline"));
        }
        let settings = &self.server.settings;
        match self.activity.awaited_input() {
            Some(AwaitedInput::RestOfHead(since))
                if since + settings.header_read_timeout <= now =>
            {
                increment(&self.server.counters.timed_out_heads);
                Err(timed_out("the client did not complete a request's head"))
            }
            Some(AwaitedInput::NextRequest(since)) if since + settings.idle_timeout <= now => {
                self.shut_down();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn timed_out(message: &'static str) -> BoxError {
    io::Error::new(ErrorKind::TimedOut, message).into()
}
