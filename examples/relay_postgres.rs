//! A feed in a PostgreSQL table, which any number of servers show. A client may return to any of them.
//!
//! ```text
//! cargo run --example relay_postgres 127.0.0.1:3000 'host=127.0.0.1 user=postgres'
//! cargo run --example relay_postgres 127.0.0.1:3001 'host=127.0.0.1 user=postgres'
//! curl -N http://127.0.0.1:3000/events                           # Server-Sent Events
//! curl -N 'http://127.0.0.1:3001/events?topic=orders'            # one topic
//! curl 'http://127.0.0.1:3000/events?topic=orders' -d 'shipped'  # publishes; both servers send it
//! ```
//! Ctrl-C ends the streams first and then the server.
//!
//! # How the table becomes a feed
//! - **The order of the numbers is the order of the commits.** With the numbers of a sequence, 42 could become visible after 43, and a reader that
//!   has seen 43 would miss 42. So `publish` counts in the one row of `events_tail`, which it locks until it commits. A transaction that is
//!   rolled back leaves no hole in the numbers.
//! - **No other row ever has the id of a row.** An id is the row's number and a random token, `42-1f0c9a3e`. A table that was created anew has the
//!   same numbers, and other tokens.
//! - **The oldest rows may be deleted**, and the newest, but none in the middle: nobody would learn of those. A row has the token of the row before it, and `events_tail` has the id of the newest row. So a client that has got the last
//!   of the deleted rows misses nothing, and for any other client the number of the rows that it misses is known.
//! - **NOTIFY only wakes.** The reader reads the table, so that a notification that is lost costs time and no event.

use std::{env, pin::pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    routing::any,
    serve::ListenerExt,
};
use futures_util::{StreamExt, stream};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Notify},
    time::{sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client, NoTls, Row};
use tower_push::{
    BoxError, Drain, Event, EventId, Gap, GapReason, Guard, Push, Relay,
    event::Topic,
    guard::DrainPlan,
    layer::TransportLayer,
    source::relay::{Page, PageRequest, RelayWriter, Upstream, UpstreamError},
    transport::Negotiate,
};

/// The tables, and the one way to write to them.
const SCHEMA: &str = "
    SELECT pg_advisory_lock(7015);
    CREATE TABLE IF NOT EXISTS events (
        number bigint PRIMARY KEY,
        token text NOT NULL,
        previous_token text NOT NULL,
        topic text,
        payload text NOT NULL
    );
    CREATE TABLE IF NOT EXISTS events_tail (number bigint NOT NULL, token text NOT NULL);
    INSERT INTO events_tail SELECT 0, 'start' WHERE NOT EXISTS (SELECT FROM events_tail);
    CREATE OR REPLACE FUNCTION publish(topic text, payload text) RETURNS text LANGUAGE plpgsql AS $$
        DECLARE previous events_tail; latest events_tail;
        BEGIN
            SELECT * INTO previous FROM events_tail FOR UPDATE;
            UPDATE events_tail SET number = number + 1, token = left(gen_random_uuid()::text, 8) RETURNING * INTO latest;
            INSERT INTO events VALUES (latest.number, latest.token, previous.token, topic, payload);
            PERFORM pg_notify('events', '');
            RETURN latest.number || '-' || latest.token;
        END
    $$;
    SELECT pg_advisory_unlock(7015);";

/// The rows after the cursor with the number `$1` and the token `$2`, and what the cursor rule needs: whether the cursor is known, the id before the
/// first row, and the id of the newest row, which may be deleted. One statement sees one state of the tables. There is a row even if there are no rows
/// after `$1`.
const READ_PAGE: &str = "
    SELECT EXISTS (SELECT FROM events WHERE number = $1 AND token = $2)
           OR EXISTS (SELECT FROM events WHERE number = $1 + 1 AND previous_token = $2)
           OR (tail.number = $1 AND tail.token = $2) AS is_known,
           (SELECT (number - 1) || '-' || previous_token FROM events ORDER BY number LIMIT 1) AS before_first_id,
           tail.number || '-' || tail.token AS last_id,
           page.*
    FROM events_tail AS tail LEFT JOIN (
        SELECT number, token, topic, payload FROM events
        WHERE number > $1 AND ($3::text[] IS NULL OR topic = ANY($3)) ORDER BY number LIMIT $4
    ) AS page ON true";

/// The id before the last `$1` rows, or that of the newest row if there are none.
const ID_BEFORE_LAST: &str = "
    SELECT coalesce(
        (SELECT (number - 1) || '-' || previous_token
         FROM (SELECT * FROM events ORDER BY number DESC LIMIT $1) AS last ORDER BY number LIMIT 1),
        (SELECT number || '-' || token FROM events_tail))";

/// The number of rows that a server reads before it serves clients, and that its relay keeps.
const LOG_EVENTS: i64 = 1000;

/// How long the reader waits for a notification before it looks at the table anyway, and before it connects again.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
const RECONNECT_DELAY: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:3000".to_owned());
    let database = arguments
        .next()
        .unwrap_or("host=127.0.0.1 user=postgres".to_owned());
    let table = EventTable::new(database);
    table.client().await?.batch_execute(SCHEMA).await?;

    // The log is filled before the first client, so that clients that return after a restart resume from memory.
    let start = table.id_before_last(LOG_EVENTS).await?;
    let (mut writer, relay) = Relay::builder()
        .max_events(LOG_EVENTS as usize)
        .start_after(start)
        .upstream(table.clone())
        .build();
    while table.read_into(&mut writer).await? {}
    tokio::spawn(table.clone().follow(writer));

    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let app = Router::new()
        .route(
            "/events",
            any(subscribe)
                .layer(TransportLayer::with(guard.wrap(Negotiate::new())))
                .post(publish),
        )
        .with_state((table, relay));
    let listener = TcpListener::bind(&address).await?;
    println!(
        "open http://{} (the events are at /events)",
        listener.local_addr()?
    );
    // Without this option, TCP may hold an event back until the client has acknowledged the one before it.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    let stop = {
        let drain = drain.clone();
        async move {
            let _ = tokio::signal::ctrl_c().await;
            drain.start(DrainPlan::within(Duration::from_secs(5)));
        }
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await?;
    Ok(())
}

/// The topic in a query.
#[derive(serde::Deserialize)]
struct TopicQuery {
    topic: Option<String>,
}

type AppState = (EventTable, Relay);

async fn subscribe(
    State((_, relay)): State<AppState>,
    Query(query): Query<TopicQuery>,
) -> Result<Push, StatusCode> {
    let Some(topic) = query.topic else {
        return Ok(Push::new(relay));
    };
    let topic = Topic::new(topic).map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(Push::new(relay.with_topics([topic])))
}

/// Publishes the request's body. Returns the id of the event.
async fn publish(
    State((table, _)): State<AppState>,
    Query(query): Query<TopicQuery>,
    body: String,
) -> Result<String, StatusCode> {
    if query
        .topic
        .as_deref()
        .is_some_and(|topic| Topic::new(topic).is_err())
    {
        return Err(StatusCode::BAD_REQUEST);
    }
    let published = table.publish(query.topic.as_deref(), &body).await;
    published.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

/// The table `events`. Clones share a connection.
#[derive(Clone)]
struct EventTable {
    database: Arc<str>,
    client: Arc<Mutex<Option<Arc<Client>>>>,
}

impl EventTable {
    fn new(database: String) -> Self {
        Self {
            database: database.into(),
            client: Arc::default(),
        }
    }

    /// Returns the shared connection, which is made anew if it is broken.
    async fn client(&self) -> Result<Arc<Client>, tokio_postgres::Error> {
        let mut shared = self.client.lock().await;
        if let Some(client) = shared.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let (client, connection) = tokio_postgres::connect(&self.database, NoTls).await?;
        tokio::spawn(connection);
        Ok(shared.insert(Arc::new(client)).clone())
    }

    async fn publish(&self, topic: Option<&str>, payload: &str) -> Result<String, BoxError> {
        let client = self.client().await?;
        let row = client
            .query_one("SELECT publish($1, $2)", &[&topic, &payload])
            .await?;
        Ok(row.try_get(0)?)
    }

    /// Returns the id after which there are `count` rows, or all rows if there are fewer.
    async fn id_before_last(&self, count: i64) -> Result<EventId, BoxError> {
        let client = self.client().await?;
        let row = client.query_one(ID_BEFORE_LAST, &[&count]).await?;
        Ok(row.try_get::<_, &str>(0)?.parse()?)
    }

    /// Pushes the next rows. Returns whether there may be more.
    async fn read_into(&self, writer: &mut RelayWriter) -> Result<bool, BoxError> {
        let after = match writer.last_id() {
            Some(id) => id,
            None => self.id_before_last(LOG_EVENTS).await?,
        };
        let page = match self.read_page(PageRequest::new(after)).await {
            Ok(page) => page,
            Err(UpstreamError::Lost(reason)) => {
                // The table was created anew, or a failover has lost its newest rows. The log begins anew, as after a start.
                let start = self.id_before_last(LOG_EVENTS).await?;
                writer.gap(&Gap::new(reason).resumed(start));
                return Ok(true);
            }
            Err(failed) => return Err(failed.to_string().into()),
        };
        let (gap, events) = page.into_parts();
        gap.iter().for_each(|gap| writer.gap(gap));
        let is_empty = events.is_empty();
        for event in events {
            writer.push(event)?;
        }
        Ok(!is_empty)
    }

    /// Reads the table for this process, until the process ends.
    async fn follow(self, mut writer: RelayWriter) {
        loop {
            if let Err(error) = self.follow_connection(&mut writer).await {
                eprintln!("database: {error}");
            }
            sleep(RECONNECT_DELAY).await;
        }
    }

    /// Reads the table until a connection breaks.
    async fn follow_connection(&self, writer: &mut RelayWriter) -> Result<(), BoxError> {
        let (client, mut connection) = tokio_postgres::connect(&self.database, NoTls).await?;
        let wake_up = Notify::new();
        let messages = stream::poll_fn(|cx| connection.poll_message(cx));
        let notify = messages.for_each(async |message| {
            if let Ok(AsyncMessage::Notification(_)) = message {
                wake_up.notify_one();
            }
        });
        let read = async {
            client.batch_execute("LISTEN events").await?;
            loop {
                // A notification after this read is kept, and ends the wait.
                while self.read_into(writer).await? {}
                let _ = timeout(POLL_INTERVAL, wake_up.notified()).await;
            }
        };
        tokio::select! {
            () = pin!(notify) => Err("the connection is closed".into()),
            result = read => result,
        }
    }
}

/// The cursor rule: a client resumes after a row only if that row or the next one is still there, or the row was the newest.
impl Upstream for EventTable {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let lost = || UpstreamError::Lost(GapReason::Epoch);
        let (number, token) = split_id(request.after()).ok_or_else(lost)?;
        let topics = request
            .topics()
            .map(|topics| topics.iter().map(Topic::as_str).collect());
        let topics: Option<Vec<&str>> = topics;
        let limit = request.max_events() as i64;
        let client = self.client().await?;
        let rows = client
            .query(READ_PAGE, &[&number, &token, &topics, &limit])
            .await?;
        let checked = rows.first().ok_or("a row is always there")?;
        let is_known: bool = checked.try_get("is_known")?;
        let before_first: Option<&str> = checked.try_get("before_first_id")?;
        let last: EventId = checked.try_get::<_, &str>("last_id")?.parse()?;
        let events = rows
            .iter()
            .filter(|row| row.get::<_, Option<i64>>("number").is_some());
        let events: Vec<_> = events.map(event_of).collect::<Result<_, _>>()?;
        let is_full = events.len() >= request.max_events();
        let mut page = Page::new(events);
        if !is_full {
            // There are no more rows of these topics up to the last row, so a client of a quiet topic need not read the rows in between.
            page = page.scanned_to(last.clone());
        }
        if is_known {
            return Ok(page);
        }
        // Without rows, the rows up to the newest are deleted.
        let first_after = before_first.map_or(Ok(last), str::parse)?;
        let (deleted_to, _) = split_id(&first_after).ok_or_else(lost)?;
        if number >= deleted_to {
            return Err(lost());
        }
        let mut gap = Gap::new(GapReason::Expired).resumed(first_after);
        if topics.is_none() {
            gap = gap.missed(number.abs_diff(deleted_to));
        }
        Ok(page.after_gap(gap))
    }
}

/// Returns the number and the token of an id. The number is one that has a next one.
fn split_id(id: &EventId) -> Option<(i64, &str)> {
    let (number, token) = id.as_str().split_once('-')?;
    let number = number.parse().ok().filter(|number| *number < i64::MAX)?;
    Some((number, token))
}

fn id_of(row: &Row) -> Result<EventId, BoxError> {
    let (number, token): (i64, &str) = (row.try_get("number")?, row.try_get("token")?);
    Ok(EventId::new(format!("{number}-{token}"))?)
}

fn event_of(row: &Row) -> Result<Event, BoxError> {
    let event = Event::text(row.try_get::<_, String>("payload")?).with_event_id(id_of(row)?);
    Ok(match row.try_get::<_, Option<&str>>("topic")? {
        Some(topic) => event.with_topic(topic)?,
        None => event,
    })
}
