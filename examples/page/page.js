// One feed over six transports. From top to bottom: parsers of the formats, connections that keep their place, and the
// panels that show them. The first two know nothing of this page: copy what you need.

// ---------------------------------------------------------------------------------------------------------------------
// Parsers: bytes in, records out.
//
// A record is what NDJSON has on a line, whatever the format:
//   {id, event, data}   an event; id and event where it has them (data_base64 instead of data, for bytes in JSON)
//   {id, gap}           events that this client will never get; the feed goes on after id
//   {id}                the cursor moves, without an event
//   {id, end}           the feed ends: for ever if end.finished
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

/** application/x-ndjson: one JSON text a line. An empty line is a sign of life. */
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
 * connection is lost, and by resume() after drop().
 *
 * Calls onstate with "connecting", "live", "reconnecting", "dropped" or "ended", and onrecord with each record.
 */
class Connection {
  #path;
  #transport;
  #lastId;
  #attempts = 0;
  #timer;

  onstate = () => {};
  onrecord = () => {};

  constructor(path, transport) {
    this.#path = path;
    this.#transport = transport;
  }

  resume() {
    this.onstate("connecting");
    this.open(this.#url());
  }

  drop() {
    this.#stop("dropped");
  }

  /** To be provided: begins to read what the URL has. */
  open(_url) {}

  /** To be provided: stops to read it. */
  close() {}

  opened() {
    this.onstate("live");
  }

  received(record) {
    this.#attempts = 0;
    if (record.id !== undefined) this.#lastId = record.id;
    this.onrecord(record);
    if (record.end?.finished) this.finished();
  }

  finished() {
    this.#stop("ended");
  }

  /** Tries again, later and later, and not at the same time as everyone else. */
  lost() {
    this.close();
    this.onstate("reconnecting");
    const longest = Math.min(15_000, 500 * 2 ** this.#attempts++);
    const delay = longest * (0.5 + Math.random() / 2);
    this.#timer = setTimeout(() => this.open(this.#url()), delay);
  }

  #stop(state) {
    clearTimeout(this.#timer);
    this.close();
    this.onstate(state);
  }

  #url() {
    const url = new URL(this.#path, location.href);
    url.searchParams.set("transport", this.#transport);
    // Not a header: a new EventSource cannot set any.
    if (this.#lastId !== undefined) url.searchParams.set("last_event_id", this.#lastId);
    return url;
  }
}

/** Any chunked format, read with fetch. */
export class FetchConnection extends Connection {
  #abort;

  async open(url) {
    const abort = (this.#abort = new AbortController());
    try {
      const response = await fetch(url, { signal: abort.signal, cache: "no-store" });
      if (response.status === 204) return this.finished();
      if (!response.ok) throw new Error(`${url} answered ${response.status}`);
      this.opened();
      await this.#read(response, abort.signal);
    } catch (error) {
      if (!abort.signal.aborted) console.warn(error);
    }
    if (!abort.signal.aborted) this.lost();
  }

  close() {
    this.#abort?.abort();
  }

  async #read(response, signal) {
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

/** Server-Sent Events, read with EventSource, which reconnects by itself. */
export class EventSourceConnection extends Connection {
  #source;
  #eventTypes;

  constructor(path, transport, eventTypes) {
    super(path, transport);
    this.#eventTypes = eventTypes;
  }

  open(url) {
    const source = (this.#source = new EventSource(url));
    source.onopen = () => this.opened();
    source.onerror = () => {
      // It gives up on every answer but 200. That the feed is over for ever, the end event would have said.
      if (source.readyState === EventSource.CLOSED) this.lost();
      else this.onstate("reconnecting");
    };
    for (const event of ["message", ...this.#eventTypes]) {
      source.addEventListener(event, ({ lastEventId, data }) => {
        this.received({ id: lastEventId || undefined, event, data });
      });
    }
    for (const control of ["gap", "end"]) {
      source.addEventListener(control, ({ lastEventId, data }) => {
        this.received({ id: lastEventId || undefined, [control]: JSON.parse(data) });
      });
    }
  }

  close() {
    this.#source?.close();
  }
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
];

/** Follows the numbers in ids, `<epoch>-<number>`: a hole is a missed event, a number that was there a repeated one. */
class Numbering {
  #epoch;
  #number;
  missed = 0;
  repeated = 0;

  /** The event of this id has come. */
  event(id) {
    this.#move(id, 1);
  }

  /** The feed goes on after this id. */
  goOnAfter(id) {
    this.#move(id, 0);
  }

  #move(id, arrived) {
    const [epoch, digits] = id.split("-");
    const number = Number(digits);
    if (epoch === this.#epoch) {
      if (arrived && number <= this.#number) {
        this.repeated++;
        return;
      }
      this.missed += Math.max(0, number - this.#number - arrived);
    }
    this.#epoch = epoch;
    this.#number = number;
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
  #shown = { state: "connecting", events: 0, gaps: 0 };
  #values = new Array(Panel.#BARS).fill(0);
  #isPainting = false;
  #painted = 0;

  constructor(transport, connection, template) {
    this.#transport = transport;
    this.#connection = connection;
    this.#article = template.content.cloneNode(true).firstElementChild;
    for (const element of this.#article.querySelectorAll("[data-show]")) {
      this.#parts[element.dataset.show] = element;
    }
    this.#label();
    this.#parts.toggle.addEventListener("click", () => this.#toggle());
    connection.onstate = (state) => this.#show({ state });
    connection.onrecord = (record) => this.#take(record);
  }

  get element() {
    return this.#article;
  }

  #label() {
    const { name, title, mediaType, hasNoIds } = this.#transport;
    const { toggle } = this.#parts;
    this.#parts.title.id = `title-${name}`;
    this.#article.setAttribute("aria-labelledby", this.#parts.title.id);
    toggle.setAttribute("aria-describedby", this.#parts.title.id);
    this.#show({ title, mediaType });
    if (hasNoIds) this.#show({ lastId: "no ids: resumes at now" });
  }

  #toggle() {
    if (this.#isResumable()) this.#connection.resume();
    else this.#connection.drop();
  }

  #isResumable() {
    return this.#shown.state === "dropped" || this.#shown.state === "ended";
  }

  #take(record) {
    if (record.gap) this.#show({ gaps: this.#shown.gaps + 1 });
    const isEvent = "data" in record;
    if (record.id && !record.end) {
      if (isEvent) this.#numbering.event(record.id);
      else this.#numbering.goOnAfter(record.id);
      this.#show({ lastId: record.id });
    }
    if (isEvent) this.#takeEvent(record);
  }

  #takeEvent({ event, data }) {
    this.#show({ events: this.#shown.events + 1 });
    // Raw lines have no types; these two can be told by their looks.
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
    const texts = { ...this.#shown, missed, repeated, toggle: this.#isResumable() ? "Resume" : "Drop" };
    for (const [name, value] of Object.entries(texts)) {
      const part = this.#parts[name];
      if (part.textContent !== String(value)) part.textContent = value;
    }
    this.#article.dataset.state = this.#shown.state;
    this.#parts.missed.classList.toggle("bad", missed > 0);
    this.#parts.repeated.classList.toggle("bad", repeated > 0);
    this.#paintBars();
    if (this.#shown.events !== this.#painted) this.#beat();
    this.#painted = this.#shown.events;
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

function connect({ name }) {
  if (name === "sse") return new EventSourceConnection("/feed", name, ["clock", "random"]);
  return new FetchConnection("/feed", name);
}

const panels = document.getElementById("panels");
const template = document.getElementById("panel");
for (const transport of TRANSPORTS) {
  const connection = connect(transport);
  panels.append(new Panel(transport, connection, template).element);
  connection.resume();
}
