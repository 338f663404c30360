// One feed in eleven ways. Event streams, long polling and WebSockets are read by the client of `clients/js`. For the other formats, which
// the client does not read, this file has parsers and connections that you can copy: they know nothing of the page.

import { connect } from "/tower-push/index.js";

// ---------------------------------------------------------------------------------------------------------------------
// Parsers: bytes in, records out.
//
// A record is what NDJSON has on a line, whatever the format:
//   {id, event, data}   an event; id and event where it has them (data_base64 instead of data, for bytes in JSON)
//   {id, gap}           events that this client will never get; the feed goes on after id
//   {id}                the cursor moves, without an event
//   {id, end}           the feed ends: for ever if end.finished, otherwise for end.retry milliseconds if that is said
// ---------------------------------------------------------------------------------------------------------------------

const utf8 = new TextEncoder();
const text = (bytes) => new TextDecoder().decode(bytes);

/** Bytes that have come and are not read yet. Chunks end anywhere, in the middle of a character too. */
class Inbox {
  #bytes = new Uint8Array(0);
  #searched = 0;

  push(chunk) {
    const joined = new Uint8Array(this.#bytes.length + chunk.length);
    joined.set(this.#bytes);
    joined.set(chunk, this.#bytes.length);
    this.#bytes = joined;
  }

  /** Takes what stands before the delimiter, and the delimiter; undefined while that has not come. */
  takeUntil(delimiter) {
    const at = this.#find(delimiter);
    if (at < 0) return undefined;
    const taken = this.#bytes.subarray(0, at);
    this.#bytes = this.#bytes.subarray(at + delimiter.length);
    this.#searched = 0;
    return taken;
  }

  #find(delimiter) {
    const last = this.#bytes.length - delimiter.length;
    for (let at = this.#searched; at <= last; at++) {
      at = this.#bytes.indexOf(delimiter[0], at);
      if (at < 0 || at > last) break;
      if (delimiter.every((byte, i) => byte === this.#bytes[at + i])) return at;
    }
    // The next search need not look again where none can begin.
    this.#searched = Math.max(0, last + 1);
    return -1;
  }
}

const LF = utf8.encode("\n");
const CRLF = utf8.encode("\r\n");

/** application/x-ndjson: one JSON text on each line. A space before a line is a heartbeat. */
export class NdjsonParser {
  #inbox = new Inbox();

  *push(chunk) {
    this.#inbox.push(chunk);
    for (let line; (line = this.#inbox.takeUntil(LF)); ) {
      if (line.length > 0) yield JSON.parse(text(line));
    }
  }
}

/** application/json-seq (RFC 7464): 0x1E before each JSON text, a line feed behind it. A lone 0x1E is a sign of life. */
export class JsonSeqParser {
  #inbox = new Inbox();

  *push(chunk) {
    this.#inbox.push(chunk);
    for (let line; (line = this.#inbox.takeUntil(LF)); ) {
      // What stands before the last separator was cut off, or is nothing.
      const json = line.subarray(line.lastIndexOf(0x1e) + 1);
      if (json.length > 0) yield JSON.parse(text(json));
    }
  }
}

/** text/plain: a payload a line, and nothing else: no ids, no types, no gaps. An empty line is a sign of life. */
export class RawParser {
  #inbox = new Inbox();

  *push(chunk) {
    this.#inbox.push(chunk);
    for (let line; (line = this.#inbox.takeUntil(LF)); ) {
      if (line.length > 0) yield { data: text(line) };
    }
  }
}

/**
 * multipart/mixed and multipart/x-mixed-replace (RFC 2046): a part an event.
 *
 * The boundary behind a part comes together with it, so that no event waits for the next one. What is not an event is a
 * part of a type of its own in the one, and a header line of the next part, to be read as soon as it is there, in the other.
 */
export class MultipartParser {
  static #CONTROL = "application/vnd.tower-push+json";

  #inbox = new Inbox();
  #boundary;
  #headers = new Map();
  #reading = "preamble";

  constructor(contentType) {
    const [, boundary] = /boundary="?([^";]+)/i.exec(contentType);
    this.#boundary = utf8.encode(`\r\n--${boundary}`);
    // So that the first boundary begins like all others.
    this.#inbox.push(CRLF);
  }

  *push(chunk) {
    this.#inbox.push(chunk);
    for (let piece; (piece = this.#inbox.takeUntil(this.#delimiter())); ) {
      const record = this.#read(piece);
      if (record) yield record;
    }
  }

  #delimiter() {
    const isLine = this.#reading === "boundary" || this.#reading === "headers";
    return isLine ? CRLF : this.#boundary;
  }

  #read(piece) {
    switch (this.#reading) {
      case "preamble":
        this.#reading = "boundary";
        return undefined;
      case "boundary":
        this.#headers.clear();
        this.#reading = text(piece).startsWith("--") ? "epilogue" : "headers";
        return undefined;
      case "headers":
        if (piece.length > 0) return this.#header(text(piece));
        this.#reading = "content";
        return undefined;
      case "content":
        this.#reading = "boundary";
        return this.#part(text(piece));
    }
  }

  #header(line) {
    const colon = line.indexOf(":");
    const name = line.slice(0, colon).toLowerCase();
    const value = line.slice(colon + 1).trim();
    this.#headers.set(name, value);
    if (name === "cursor") return { id: value };
    if (name === "gap") {
      const gap = JSON.parse(value);
      return { id: gap.resumed ?? undefined, gap };
    }
    if (name === "end") return { end: JSON.parse(value) };
  }

  #part(content) {
    const type = this.#headers.get("content-type");
    if (type === MultipartParser.#CONTROL) return JSON.parse(content);
    if (this.#headers.has("end")) return undefined;
    const data = type === "application/json" ? JSON.parse(content) : content;
    return { id: this.#headers.get("event-id"), event: this.#headers.get("event-type"), data };
  }
}

const PARSERS = {
  "application/x-ndjson": NdjsonParser,
  "application/json-seq": JsonSeqParser,
  "multipart/mixed": MultipartParser,
  "multipart/x-mixed-replace": MultipartParser,
  "text/plain": RawParser,
};

/** The parser for a response's content type. */
export function parserFor(contentType) {
  const [mediaType] = contentType.toLowerCase().split(";");
  const Parser = PARSERS[mediaType.trim()];
  if (!Parser) throw new Error(`no parser for ${contentType}`);
  return new Parser(contentType);
}

// ---------------------------------------------------------------------------------------------------------------------
// Connections
// ---------------------------------------------------------------------------------------------------------------------

/**
 * A connection to a feed, over one transport. It remembers the last id, and comes back with it: by itself when the
 * connection is lost or unplugged, and by resume() after drop().
 *
 * Calls onstate with "connecting", "live", "reconnecting", "unplugged", "dropped" or "ended", onagreed with what client and
 * server have agreed on, where that is known only then, and onrecord with each record.
 */
class Connection {
  #feed;
  #transport;
  #lastId;
  #attempts = 0;
  #told;
  #timer;

  onstate = () => {};
  onagreed = () => {};
  onrecord = () => {};

  constructor(feed, transport) {
    this.#feed = feed;
    this.#transport = transport;
  }

  resume() {
    this.onstate("connecting");
    this.open();
  }

  drop() {
    this.#stop("dropped");
  }

  /** Drops the connection for a while. */
  unplug(milliseconds) {
    this.#stop("unplugged");
    this.#timer = setTimeout(() => this.resume(), milliseconds);
  }

  /** To be provided: begins to read what url() has. */
  open() {}

  /** To be provided: stops to read it. */
  close() {}

  /** How to ask for what comes after this id; for what comes from now on, without one. */
  query(lastId) {
    // Not a header: across origins it would cost another request.
    return { transport: this.#transport, last_event_id: lastId };
  }

  url() {
    const url = new URL(this.#feed);
    for (const [name, value] of Object.entries(this.query(this.#lastId))) {
      if (value !== undefined) url.searchParams.set(name, value);
    }
    return url;
  }

  opened() {
    this.onstate("live");
  }

  received(record) {
    this.#attempts = 0;
    this.#told = record.end?.retry;
    if (record.id !== undefined) this.#lastId = record.id;
    this.onrecord(record);
    if (record.end?.finished) this.finished();
  }

  finished() {
    this.#stop("ended");
  }

  /** Tries again: when it was told to, or else later and later, and not at the same time as everyone else. */
  lost() {
    this.close();
    this.onstate("reconnecting");
    const longest = Math.min(15_000, 500 * 2 ** this.#attempts++);
    const delay = this.#told ?? longest * (0.5 + Math.random() / 2);
    this.#told = undefined;
    this.#timer = setTimeout(() => this.open(), delay);
  }

  #stop(state) {
    clearTimeout(this.#timer);
    this.close();
    this.onstate(state);
  }
}

/** What is read with fetch. */
class FetchConnection extends Connection {
  #abort;

  async open() {
    const { signal } = (this.#abort = new AbortController());
    try {
      await this.follow(signal);
    } catch (error) {
      if (!signal.aborted) console.warn(error);
    }
    if (!signal.aborted) this.lost();
  }

  close() {
    this.#abort?.abort();
  }

  /** To be provided: reads until there is no more, or until the signal. */
  async follow(_signal) {}

  ask(signal) {
    return fetch(this.url(), { signal, cache: "no-store" });
  }
}

const failure = (response) => new Error(`${response.url} answered ${response.status}`);

/** Any chunked format: one response, which goes on and on. */
export class ChunkedConnection extends FetchConnection {
  async follow(signal) {
    const response = await this.ask(signal);
    if (response.status === 204) return this.finished();
    if (!response.ok) throw failure(response);
    this.opened();
    const parser = parserFor(response.headers.get("content-type"));
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      for (const record of parser.push(value)) {
        // The last record may have been the end, or made someone drop the connection.
        if (signal.aborted) return;
        this.received(record);
      }
    }
  }
}

/**
 * Long polling in the dialect of Durable Streams: a response at a time, with a JSON array of payloads and the offset at which the next request
 * begins.
 */
export class DurableConnection extends FetchConnection {
  #cursor;

  query(offset = "now") {
    return { offset, live: "long-poll", cursor: this.#cursor };
  }

  async follow(signal) {
    while (!signal.aborted) {
      const records = await this.#records(await this.ask(signal));
      if (signal.aborted) return;
      this.opened();
      for (const record of records) this.received(record);
    }
  }

  async #records(response) {
    // The events after the offset are gone. The stream goes on with the oldest event that is left.
    if (response.status === 410) return [{ id: "-1", gap: { reason: "gone" } }];
    if (!response.ok) throw failure(response);
    this.#cursor = response.headers.get("Stream-Cursor") ?? undefined;
    const payloads = response.status === 204 ? [] : await response.json();
    const records = payloads.map((data) => ({ data }));
    records.push({ id: response.headers.get("Stream-Next-Offset") ?? undefined });
    if (response.headers.get("Stream-Closed")) records.push({ end: { finished: true } });
    return records;
  }
}

/** Server-Sent Events, long polling or a WebSocket, read by the client, which reconnects and resumes by itself. */
class ClientConnection extends Connection {
  #url;
  #options;
  #push;
  #cursor;

  constructor(feed, transport, options) {
    super(feed, transport);
    this.#url = new URL(feed);
    this.#url.searchParams.set("transport", transport);
    this.#options = options;
  }

  open() {
    const push = (this.#push = connect(this.#url, { since: this.#cursor, maxDelay: 5000, ...this.#options, WebSocket: this.#socketClass() }));
    push.on("state", (state) => {
      if (state === "open") this.opened();
      else if (state !== "closed") this.onstate("reconnecting");
    });
    push.on("event", ({ id, type, data }) => this.received({ id, event: type, data }));
    // Without ids, each reconnection is a gap for the client.
    push.on("gap", (gap) => gap.reason !== "unknown" && this.received({ id: gap.resumed, gap }));
    push.on("finished", () => this.finished());
  }

  close() {
    this.#cursor = this.#push?.cursor;
    this.#push?.close();
  }

  /** A WebSocket that says what it has agreed on with the server. */
  #socketClass() {
    const onagreed = (agreed) => this.onagreed(agreed);
    return class extends WebSocket {
      constructor(url, protocols) {
        super(url, protocols);
        this.addEventListener("open", () => onagreed([this.protocol, ...extensionsOf(this)]));
      }
    };
  }
}

/** Their names, without parameters. */
function extensionsOf(socket) {
  const extensions = socket.extensions.split(",");
  return extensions.map((extension) => extension.split(";")[0].trim());
}

// ---------------------------------------------------------------------------------------------------------------------
// Panels
// ---------------------------------------------------------------------------------------------------------------------

const TRANSPORTS = [
  { name: "sse", title: "Server-Sent Events", mediaType: "text/event-stream" },
  { name: "ndjson", title: "NDJSON", mediaType: "application/x-ndjson" },
  { name: "json-seq", title: "JSON text sequences", mediaType: "application/json-seq" },
  { name: "multipart", title: "Multipart", mediaType: "multipart/mixed" },
  { name: "multipart-replace", title: "Multipart, replacing", mediaType: "multipart/x-mixed-replace" },
  { name: "raw", title: "Raw lines", mediaType: "text/plain", hasNoIds: true },
  { name: "long-poll", title: "Long polling", mediaType: "application/json" },
  { name: "durable", title: "Durable Streams", mediaType: "application/json" },
  { name: "websocket", title: "WebSocket", mediaType: "ws" },
  { name: "websocket-plain", title: "WebSocket, plain", mediaType: "ws", hasNoIds: true },
  { name: "websocket-compressed", title: "WebSocket, compressed", mediaType: "ws" },
];

/**
 * Follows the numbers in ids, `<epoch>-<number>`. As many events must have come as the number has moved on: if fewer have,
 * some were missed, and if more, some were repeated.
 */
class Numbering {
  #epoch;
  #number;
  #arrived = 0;
  missed = 0;
  repeated = 0;

  /** An event has come. Its id follows, or, for all of a batch, the id of the last one. */
  event() {
    this.#arrived++;
  }

  /** The feed goes on after this id. */
  goOnAfter(id) {
    const [epoch, digits] = id.split("-");
    let number = Number(digits);
    if (epoch === this.#epoch) {
      const moved = Math.max(0, number - this.#number);
      this.missed += Math.max(0, moved - this.#arrived);
      this.repeated += Math.max(0, this.#arrived - moved);
      number = this.#number + moved;
    }
    this.#epoch = epoch;
    this.#number = number;
    this.#arrived = 0;
  }
}

/** The sums over all panels. */
class Ledger {
  #panels = [];
  #parts = {};
  #frame;

  constructor(section) {
    for (const element of section.querySelectorAll("[data-show]")) this.#parts[element.dataset.show] = element;
  }

  add(panel) {
    this.#panels.push(panel);
    panel.onpaint = () => {
      this.#frame ??= requestAnimationFrame(() => this.#paint());
    };
  }

  #paint() {
    this.#frame = undefined;
    for (const [name, part] of Object.entries(this.#parts)) {
      const sum = this.#panels.reduce((sum, panel) => sum + panel.counts[name], 0);
      part.textContent = sum;
      part.classList.toggle("bad", sum > 0 && (name === "missed" || name === "repeated"));
    }
  }
}

/** What a panel shows, and the one place that writes to the page. */
class Panel {
  static #BARS = 40;

  #transport;
  #connection;
  #parts = {};
  #article;
  #numbering = new Numbering();
  #shown = { state: "connecting", received: 0, gaps: 0, plugs: 0 };
  #values = new Array(Panel.#BARS).fill(0);
  #countdown;
  #isPainting = false;
  #painted = 0;

  onpaint = () => {};

  constructor(transport, connection, template) {
    this.#transport = transport;
    this.#connection = connection;
    this.#article = template.content.cloneNode(true).firstElementChild;
    for (const element of this.#article.querySelectorAll("[data-show]")) {
      this.#parts[element.dataset.show] = element;
    }
    this.#label();
    this.#parts.toggle.addEventListener("click", () => this.#toggle());
    this.#parts.plug.addEventListener("click", () => this.#pullThePlug());
    connection.onstate = (state) => this.#show({ state });
    connection.onagreed = (agreed) => this.#show({ mediaType: [transport.mediaType, ...agreed].filter(Boolean).join(" · ") });
    connection.onrecord = (record) => this.#take(record);
  }

  get element() {
    return this.#article;
  }

  /** Of what has no ids, none is known to be missed or repeated. */
  get counts() {
    const { received, gaps, plugs } = this.#shown;
    const { missed, repeated } = this.#numbering;
    return { received, repeated, missed, gaps, plugs };
  }

  #label() {
    const { name, title, mediaType, hasNoIds } = this.#transport;
    const { toggle, plug } = this.#parts;
    this.#parts.title.id = `title-${name}`;
    this.#article.setAttribute("aria-labelledby", this.#parts.title.id);
    for (const button of [toggle, plug]) button.setAttribute("aria-describedby", this.#parts.title.id);
    this.#show({ title, mediaType });
    if (hasNoIds) this.#show({ lastId: "no ids: losses go unseen" });
  }

  #toggle() {
    if (this.#isResumable()) this.#connection.resume();
    else this.#connection.drop();
  }

  #isResumable() {
    return this.#shown.state === "dropped" || this.#shown.state === "ended";
  }

  /** For 3 to 5 seconds. */
  #pullThePlug() {
    if (!this.#hasPlug()) return;
    const seconds = 3 + Math.floor(Math.random() * 3);
    this.#connection.unplug(seconds * 1000);
    this.#show({ plugs: this.#shown.plugs + 1 });
    this.#countDown(seconds);
  }

  #hasPlug() {
    return !this.#isResumable() && this.#shown.state !== "unplugged";
  }

  #countDown(seconds) {
    clearTimeout(this.#countdown);
    this.#show({ backIn: seconds });
    if (seconds > 1) this.#countdown = setTimeout(() => this.#countDown(seconds - 1), 1000);
  }

  #take(record) {
    if (record.gap) this.#show({ gaps: this.#shown.gaps + 1 });
    const isEvent = "data" in record;
    if (isEvent) this.#takeEvent(record);
    if (record.id && !record.end) {
      this.#numbering.goOnAfter(record.id);
      this.#show({ lastId: record.id });
    }
  }

  #takeEvent({ event, data }) {
    this.#numbering.event();
    this.#show({ received: this.#shown.received + 1 });
    // Payloads alone have no types; these two can be told by their looks.
    if (event === "clock" || /^\d\d:/.test(data)) return this.#show({ clock: data });
    this.#values = [...this.#values.slice(1), Number(data)];
    this.#show({ random: Number(data).toFixed(4) });
  }

  /** Many changes, one write: a replay comes all at once. */
  #show(changes) {
    Object.assign(this.#shown, changes);
    if (this.#isPainting) return;
    this.#isPainting = true;
    requestAnimationFrame(() => {
      this.#isPainting = false;
      this.#paint();
    });
  }

  #paint() {
    const { missed, repeated } = this.#transport.hasNoIds ? { missed: "–", repeated: "–" } : this.#numbering;
    const { state, backIn } = this.#shown;
    const toggle = this.#isResumable() ? "Resume" : "Drop";
    const plug = state === "unplugged" ? `Back in ${backIn} s` : "Pull the plug";
    const texts = { ...this.#shown, missed, repeated, toggle, plug };
    for (const [name, part] of Object.entries(this.#parts)) {
      if (name in texts && part.textContent !== String(texts[name])) part.textContent = texts[name];
    }
    // Not `disabled`: the keyboard's focus would be lost.
    this.#parts.plug.setAttribute("aria-disabled", !this.#hasPlug());
    this.#article.dataset.state = this.#shown.state;
    this.#parts.missed.classList.toggle("bad", missed > 0);
    this.#parts.repeated.classList.toggle("bad", repeated > 0);
    this.#paintBars();
    if (this.#shown.received !== this.#painted) this.#beat();
    this.#painted = this.#shown.received;
    this.onpaint();
  }

  #paintBars() {
    const bars = this.#values.map((value, place) => `M${place * 6 + 3} 34V${(33 - value * 31).toFixed(1)}`);
    this.#parts.lastBar.setAttribute("d", bars.pop());
    this.#parts.bars.setAttribute("d", bars.join(""));
  }

  #beat() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    this.#parts.dot.animate({ boxShadow: ["0 0 0 0 currentColor", "0 0 0 0.4rem transparent"] }, 450);
  }
}

/**
 * Over HTTP/1.1 a browser opens six connections to one host, by name, and eight are needed here. This machine has two names:
 * half of those panels take the other one. WebSockets do not count.
 */
function otherName({ hostname }) {
  return { "127.0.0.1": "localhost", localhost: "127.0.0.1" }[hostname] ?? hostname;
}

function connectionOf({ name }, feed, there) {
  switch (name) {
    case "sse":
      return new ClientConnection(feed, name, { transports: ["sse"] });
    case "ndjson":
    case "json-seq":
    case "multipart":
      return new ChunkedConnection(feed, name);
    case "multipart-replace":
    case "raw":
      return new ChunkedConnection(there, name);
    case "long-poll":
      return new ClientConnection(there, name, { transports: ["long-poll"] });
    case "durable":
      return new DurableConnection(there, name);
    case "websocket-plain":
      return new ClientConnection(feed, "websocket", { transports: ["websocket"], protocols: [] });
    case "websocket":
    case "websocket-compressed":
      return new ClientConnection(feed, name, { transports: ["websocket"] });
  }
}

const feed = new URL("/feed", location.href);
const there = new URL(feed);
there.hostname = otherName(feed);
const sixConnections =
  "Over HTTP/1.1 a browser opens six connections to one host, WebSockets not counted, and eight of these panels need one:";
document.querySelector("[data-show=hosts]").textContent =
  there.host === feed.host
    ? `${sixConnections} the last of them wait until others are dropped. Opened as localhost, on the machine itself, this page ` +
      "shows all."
    : `${sixConnections} four are at ${feed.host}, four at ${there.host}.`;

const panels = document.getElementById("panels");
const template = document.getElementById("panel");
const ledger = new Ledger(document.querySelector("[data-ledger]"));
for (const transport of TRANSPORTS) {
  const connection = connectionOf(transport, feed, there);
  const panel = new Panel(transport, connection, template);
  panels.append(panel.element);
  ledger.add(panel);
  connection.resume();
}
