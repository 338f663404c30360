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
//! - **The order of the numbers is the order of the commits.** Numbers are drawn before a transaction commits: without a lock, 42 could
//!   become visible after 43, and a reader that has seen 43 would miss 42. So `publish` takes a lock that it holds until it commits.
//! - **No other row ever has the id of a row.** An id is the row's number and a random token, `42-1f0c9a3e`. A table that was created anew has the
//!   same numbers, and other tokens.
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

/// The table, and the one way to write to it.
const SCHEMA: &str = "
    SELECT pg_advisory_lock(7015);
    CREATE TABLE IF NOT EXISTS events (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        token text NOT NULL DEFAULT left(gen_random_uuid()::text, 8),
        topic text,
        payload text NOT NULL
    );
    CREATE OR REPLACE FUNCTION publish(topic text, payload text) RETURNS text LANGUAGE sql AS $$
        SELECT pg_advisory_xact_lock(7016);
        SELECT pg_notify('events', '');
        INSERT INTO events (topic, payload) VALUES ($1, $2) RETURNING number || '-' || token;
    $$;
    SELECT pg_advisory_unlock(7015);";

/// The rows after `$1`, the id of the last row of all topics, and what the cursor rule needs: the token of row `$1`, and the number of the
/// first row. One statement sees one state of the table. There is a row even if there are no rows after `$1`.
const READ_PAGE: &str = "
    SELECT (SELECT token FROM events WHERE number = $1) AS found_token,
           (SELECT min(number) FROM events) AS first_number,
           (SELECT number || '-' || token FROM events ORDER BY number DESC LIMIT 1) AS last_id,
           page.*
    FROM (SELECT 1) AS always LEFT JOIN (
        SELECT * FROM events
        WHERE number > $1 AND ($2::text[] IS NULL OR topic = ANY($2)) ORDER BY number LIMIT $3
    ) AS page ON true";

/// The id before the first row.
const START: &str = "0-start";

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
        let query = "SELECT number, token FROM events ORDER BY number DESC OFFSET $1 LIMIT 1";
        let row = self.client().await?.query_opt(query, &[&count]).await?;
        Ok(match row {
            Some(row) => id_of(&row)?,
            None => START.parse()?,
        })
    }

    /// Pushes the next rows. Returns whether there may be more.
    async fn read_into(&self, writer: &mut RelayWriter) -> Result<bool, BoxError> {
        let after = match writer.last_id() {
            Some(id) => id,
            None => START.parse()?,
        };
        let page = match self.read_page(PageRequest::new(after)).await {
            Ok(page) => page,
            Err(UpstreamError::Lost(reason)) => {
                // The table was created anew. Its rows are read from the first one on.
                writer.gap(&Gap::new(reason).resumed(START.parse()?));
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

/// The cursor rule: a client resumes after a row only if that row is still there.
impl Upstream for EventTable {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let Some((number, token)) = split_id(request.after()) else {
            return Err(UpstreamError::Lost(GapReason::Epoch));
        };
        let topics = request
            .topics()
            .map(|topics| topics.iter().map(Topic::as_str).collect());
        let topics: Option<Vec<&str>> = topics;
        let limit = request.max_events() as i64;
        let client = self.client().await?;
        let rows = client.query(READ_PAGE, &[&number, &topics, &limit]).await?;
        let checked = rows.first().ok_or("a row is always there")?;
        let found: Option<&str> = checked.try_get("found_token")?;
        let first: Option<i64> = checked.try_get("first_number")?;
        let last_id: Option<&str> = checked.try_get("last_id")?;
        let is_start = request.after().as_str() == START;
        let is_deleted = first.is_some_and(|first| number < first);
        if !is_start && !is_deleted && found != Some(token) {
            return Err(UpstreamError::Lost(GapReason::Epoch));
        }
        let rows = rows
            .iter()
            .filter(|row| row.get::<_, Option<i64>>("number").is_some());
        let events: Vec<_> = rows.map(event_of).collect::<Result<_, _>>()?;
        let is_full = events.len() >= request.max_events();
        let mut page = Page::new(events);
        if let (false, Some(last_id)) = (is_full, last_id) {
            // There are no more rows of these topics up to the last row, so a client of a quiet topic need not read the rows in between.
            page = page.scanned_to(last_id.parse()?);
        }
        if is_deleted && !(is_start && first == Some(1)) {
            // The numbers do not tell how many rows are missing: a transaction that was rolled back has used one, too.
            return Ok(page.after_gap(Gap::new(GapReason::Expired)));
        }
        Ok(page)
    }
}

fn split_id(id: &EventId) -> Option<(i64, &str)> {
    let (number, token) = id.as_str().split_once('-')?;
    Some((number.parse().ok()?, token))
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
