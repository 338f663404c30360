use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, Event as ClientEvent, HeaderMap, Message, ServerError, StatusCode, Subscriber,
    client::PublishErrorKind, connection::State,
};
use bytes::Bytes;
use tokio::{
    sync::{Mutex as AsyncMutex, OnceCell, watch},
    time::{sleep, timeout},
};

use crate::{answer_inbox::AnswerInbox, error::Error, nats_servers::NatsServers};

/// The connection of this process to the servers.
#[derive(Debug)]
pub(crate) struct NatsConnection {
    servers: NatsServers,
    client: RwLock<Arc<ActiveClient>>,
    /// Locked while a client that has ended is replaced.
    replacement: AsyncMutex<()>,
    events: Arc<ConnectionEvents>,
    /// The longest time for an attempt to connect, and for the answer to a request.
    timeout: Duration,
}

/// The NATS client, which reconnects by itself. It ends only if its task panics, as it does at a message with a carriage return in a header.
#[derive(Debug)]
pub(crate) struct ActiveClient {
    client: Client,
    /// Created with the first request, so that this request notices if the server refuses the subscription.
    inbox: OnceCell<AnswerInbox>,
    has_ended: Arc<AtomicBool>,
}

/// The events of the connection: changes of its state, and refusals.
#[derive(Debug)]
struct ConnectionEvents {
    changes: watch::Sender<()>,
    refusals: Mutex<Refusals>,
}

/// The newest refusals of subjects by the server of the present connection. A refusal does not say which request it is for, so each request with the
/// subject that waits at this time fails.
#[derive(Debug, Default)]
struct Refusals {
    /// The number of refusals so far, on all connections.
    count: u64,
    /// The last of them, as the server has worded them, oldest first.
    newest: VecDeque<String>,
}

/// Notices that the connection breaks, or that the server refuses a subject, after this value was created.
#[derive(Debug)]
pub(crate) struct ConnectionLossDetector {
    changes: watch::Receiver<()>,
    client: Arc<ActiveClient>,
    connects: u64,
    /// The number of refusals before this value was created.
    refusals: u64,
}

/// The number of refusals that are kept until the requests that wait have read them.
const MAX_REFUSALS: usize = 64;

impl NatsConnection {
    /// Connects to one of the servers.
    pub(crate) async fn connect(servers: &NatsServers, timeout: Duration) -> Result<Self, Error> {
        let events = Arc::new(ConnectionEvents {
            changes: watch::Sender::new(()),
            refusals: Mutex::default(),
        });
        let client = connect_client(servers, timeout, &events).await?;
        Ok(Self {
            servers: servers.clone(),
            client: RwLock::new(Arc::new(client)),
            replacement: AsyncMutex::new(()),
            events,
            timeout,
        })
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns whether the server has at least this version.
    pub(crate) fn has_version(&self, (major, minor, patch): (i64, i64, i64)) -> bool {
        let active = self.active();
        active.client.is_server_compatible(major, minor, patch)
    }

    /// The largest number of bytes of a message with its headers.
    pub(crate) fn max_message_len(&self) -> usize {
        self.active().client.max_payload()
    }

    fn active(&self) -> Arc<ActiveClient> {
        // No code panics while it holds the lock.
        let active = self.client.read().unwrap_or_else(PoisonError::into_inner);
        active.clone()
    }

    /// Returns a detector of the loss of the present connection.
    ///
    /// # Errors
    /// [`Error::is_unavailable`] if there is no connection now. The NATS client would keep a message that is sent now until it is connected
    /// again.
    pub(crate) fn loss_detector(&self) -> Result<ConnectionLossDetector, Error> {
        // The receiver is created first, so that it notices a change after the check.
        let changes = self.events.changes.subscribe();
        let client = self.active();
        match client.is_connected() {
            true => Ok(ConnectionLossDetector {
                changes,
                connects: client.connect_count(),
                client,
                refusals: self.events.lock_refusals().count,
            }),
            false => Err(Error::unavailable("there is no connection")),
        }
    }

    /// Waits until the connection of a detector is lost.
    pub(crate) async fn wait_until_broken(&self, detector: &mut ConnectionLossDetector) -> Error {
        self.wait_for_interruption(detector, None).await
    }

    /// Like [`wait_until_broken`](Self::wait_until_broken), but also returns the error if the server refuses a message with this subject.
    pub(crate) async fn wait_until_refused(
        &self,
        detector: &mut ConnectionLossDetector,
        subject: &str,
    ) -> Error {
        self.wait_for_interruption(detector, Some(subject)).await
    }

    /// Waits until the connection is broken, or the server refuses the subject of a request, or a subscription.
    async fn wait_for_interruption(
        &self,
        detector: &mut ConnectionLossDetector,
        subject: Option<&str>,
    ) -> Error {
        loop {
            // `self.events` holds the sender, so waiting for a change never fails.
            if detector.changes.changed().await.is_err() {
                return Error::disconnected();
            }
            let client = &detector.client;
            if !client.is_connected() || client.connect_count() != detector.connects {
                return Error::disconnected();
            }
            if let Some(subject) = subject
                && let Some(refusal) = self.events.refusal_of(subject, detector.refusals)
            {
                return Error::unauthorized(&refusal);
            }
        }
    }

    /// Sends a request, and waits for the answer.
    pub(crate) async fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, Error> {
        let mut detector = self.loss_detector()?;
        let client = detector.client.clone();
        let answer = async {
            tokio::select! {
                answer = self.send_request(&client, subject.clone(), headers, payload) => answer,
                error = self.wait_for_interruption(&mut detector, Some(&subject)) => Err(error),
            }
        };
        self.wait_for_answer(&client, answer).await?
    }

    /// Waits for the answer to a request, for a limited time.
    ///
    /// One late answer says nothing about the connection, which everything shares: only one part of the server may be slow. So a server that has sent
    /// nothing by the middle of this time gets a PING, and if it has sent nothing by the end either, this method reconnects, to another server or to
    /// the same one.
    ///
    /// # Errors
    /// [`Error::timeout`] if the answer does not come in time.
    async fn wait_for_answer<T>(
        &self,
        active: &ActiveClient,
        answer: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let received = active.received_bytes();
        let ping_if_silent = async {
            sleep(self.timeout / 2).await;
            if active.received_bytes() == received {
                active.ping().await;
            }
            std::future::pending().await
        };
        let answer_or_ping = async {
            tokio::select! {
                answer = answer => answer,
                never = ping_if_silent => never,
            }
        };
        if let Ok(answer) = timeout(self.timeout, answer_or_ping).await {
            return Ok(answer);
        }
        if active.received_bytes() == received {
            self.reconnect(active).await;
        }
        Err(Error::timeout())
    }

    async fn send_request(
        &self,
        active: &ActiveClient,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, Error> {
        let inbox = active.inbox.get_or_try_init(|| self.create_inbox(active));
        let (answer, reply_to) = inbox.await?.register();
        let client = &active.client;
        let sent = match headers {
            Some(headers) => {
                client
                    .publish_with_reply_and_headers(subject, reply_to, headers, payload)
                    .await
            }
            None => client.publish_with_reply(subject, reply_to, payload).await,
        };
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::Send => active.end().with_may_have_run(false),
            _ => Error::from(error),
        })?;
        let answer = answer.wait().await?;
        match answer.status {
            Some(StatusCode::NO_RESPONDERS) => Err(Error::no_responders()),
            _ => Ok(answer),
        }
    }

    async fn create_inbox(&self, active: &ActiveClient) -> Result<AnswerInbox, Error> {
        let prefix = active.client.new_inbox();
        let answers = active.client.subscribe(format!("{prefix}.*")).await;
        // The subject is valid, so only a client that has ended refuses it.
        let answers = answers.map_err(|_| active.end())?;
        let (has_ended, events) = (active.has_ended.clone(), self.events.clone());
        Ok(AnswerInbox::new(prefix, answers, move || {
            has_ended.store(true, Ordering::Release);
            events.changes.send_replace(());
        }))
    }

    /// Sends a request that has several answers. Returns the subscription that gets them.
    pub(crate) async fn request_many(
        &self,
        subject: String,
        payload: Bytes,
    ) -> Result<Subscriber, Error> {
        let answers = self.new_inbox();
        let subscriber = self.subscribe(answers.clone()).await?;
        self.send(subject, answers, payload).await?;
        Ok(subscriber)
    }

    pub(crate) fn new_inbox(&self) -> String {
        self.active().client.new_inbox()
    }

    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, Error> {
        let active = self.active();
        let subscribed = timeout(self.timeout, active.client.subscribe(subject)).await;
        let subscribed = subscribed.map_err(|_| Error::timeout())?;
        // The subjects of this crate are valid, so only a client that has ended refuses one.
        subscribed.map_err(|_| active.end())
    }

    /// Sends a message whose answers go to the subject `reply_to`.
    pub(crate) async fn send(
        &self,
        subject: String,
        reply_to: String,
        payload: Bytes,
    ) -> Result<(), Error> {
        let active = self.active();
        let send = active.client.publish_with_reply(subject, reply_to, payload);
        Ok(timeout(self.timeout, send)
            .await
            .map_err(|_| Error::timeout())??)
    }

    /// Reconnects, to another server or to the same one.
    ///
    /// During an attempt to connect, this method does not ask for another attempt: it would break the connection that the attempt makes.
    pub(crate) async fn reconnect(&self, active: &ActiveClient) {
        if active.is_connected() {
            // The queue of the NATS client can be full.
            let _ = timeout(self.timeout, active.client.force_reconnect()).await;
        }
    }

    /// Waits until there is a connection, for a limited time. Replaces the NATS client if it has ended.
    pub(crate) async fn wait_until_connected_or_timeout(&self) {
        let mut changes = self.events.changes.subscribe();
        let connected = async {
            while !self.active().is_connected() {
                if self.active().has_ended() {
                    return self.replace_client().await;
                }
                // The NATS client sends the connection event only after it has set its state.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = connected => {}
            () = sleep(self.timeout) => {}
        }
    }

    /// Connects a new NATS client in place of one that has ended. If this fails, the connection stays without a client.
    async fn replace_client(&self) {
        let _one_at_a_time = self.replacement.lock().await;
        if !self.active().has_ended() {
            return;
        }
        if let Ok(client) = connect_client(&self.servers, self.timeout, &self.events).await {
            let mut active = self.client.write().unwrap_or_else(PoisonError::into_inner);
            *active = Arc::new(client);
            drop(active);
            self.events.changes.send_replace(());
        }
    }
}

async fn connect_client(
    servers: &NatsServers,
    timeout: Duration,
    events: &Arc<ConnectionEvents>,
) -> Result<ActiveClient, Error> {
    let events = events.clone();
    let options = servers
        .connect_options(timeout)
        .event_callback(move |event| {
            events.record(event);
            std::future::ready(())
        });
    Ok(ActiveClient {
        client: options.connect(servers.addresses()).await?,
        inbox: OnceCell::new(),
        has_ended: Arc::default(),
    })
}

impl ActiveClient {
    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Records that the client has ended: its channels are closed. Returns the error of a request whose answer can no longer come.
    pub(crate) fn end(&self) -> Error {
        self.has_ended.store(true, Ordering::Release);
        Error::disconnected()
    }

    fn is_connected(&self) -> bool {
        !self.has_ended() && self.client.connection_state() == State::Connected
    }

    fn connect_count(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// The number of bytes that the servers have sent on all connections.
    fn received_bytes(&self) -> u64 {
        self.client.statistics().in_bytes.load(Ordering::Relaxed)
    }

    /// Sends a PING. The NATS client has no method for this, but sends one with the end of a subscription.
    async fn ping(&self) {
        // If the client has ended, there is no server to ask.
        if let Ok(mut subscriber) = self.client.subscribe(self.client.new_inbox()).await {
            let _ = subscriber.drain().await;
        }
    }
}

impl ConnectionLossDetector {
    /// Returns the client whose connection this is.
    pub(crate) fn client(&self) -> &Arc<ActiveClient> {
        &self.client
    }
}

impl ConnectionEvents {
    fn record(&self, event: ClientEvent) {
        match event {
            ClientEvent::ServerError(ServerError::Other(text)) => {
                if !text.to_ascii_lowercase().contains("permissions violation") {
                    return;
                }
                self.lock_refusals().push(text);
            }
            ClientEvent::Connected => self.lock_refusals().newest.clear(),
            _ => {}
        }
        self.changes.send_replace(());
    }

    /// Returns the newest refusal that concerns `subject` or a subscription for answers, if it came after the first `before` refusals.
    fn refusal_of(&self, subject: &str, before: u64) -> Option<String> {
        let refusals = self.lock_refusals();
        let quoted = format!("\"{subject}\"");
        let is_subject =
            |text: &&String| text.contains(&quoted) || text.contains("Subscription to");
        refusals.after(before).rev().find(is_subject).cloned()
    }

    fn lock_refusals(&self) -> MutexGuard<'_, Refusals> {
        // No code panics while it holds the lock.
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refusals {
    fn push(&mut self, text: String) {
        if self.newest.len() == MAX_REFUSALS {
            self.newest.pop_front();
        }
        self.newest.push_back(text);
        self.count += 1;
    }

    /// Returns the refusals that came after the first `before`, if they are kept.
    fn after(&self, before: u64) -> impl DoubleEndedIterator<Item = &String> {
        let new = usize::try_from(self.count - before).unwrap_or(usize::MAX);
        self.newest.range(self.newest.len().saturating_sub(new)..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse(events: &ConnectionEvents, subject: &str) {
        let text = format!("Permissions Violation for Publish to \"{subject}\"");
        events.record(ClientEvent::ServerError(ServerError::Other(text)));
    }

    #[test]
    fn refusal_concerns_all_requests_that_wait() {
        let events = ConnectionEvents {
            changes: watch::Sender::new(()),
            refusals: Mutex::default(),
        };
        refuse(&events, "a");
        refuse(&events, "b");
        for _ in 0..2 {
            assert!(events.refusal_of("a", 0).unwrap().contains("\"a\""));
            assert!(events.refusal_of("b", 1).unwrap().contains("\"b\""));
        }
        // The request began later, or has another subject.
        assert_eq!(events.refusal_of("a", 1), None);
        assert_eq!(events.refusal_of("b", 2), None);
        assert_eq!(events.refusal_of("c", 0), None);
        for _ in 0..2 * MAX_REFUSALS {
            refuse(&events, "c");
        }
        assert_eq!(events.refusal_of("a", 0), None);
        assert_eq!(events.lock_refusals().newest.len(), MAX_REFUSALS);
        events.record(ClientEvent::Connected);
        assert_eq!(events.refusal_of("c", 0), None);
        refuse(&events, "d");
        let before = events.lock_refusals().count - 1;
        assert!(events.refusal_of("d", before).is_some());
        assert_eq!(events.refusal_of("d", before + 1), None);
    }
}
