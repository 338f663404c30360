import { connect, PushError, type ConnectOptions, type Gap, type PushConnection, type PushEvent, type PushGap, type State } from "./index.js";
import { ListenerSet, RESERVED } from "./listeners.js";
import { ItemQueues } from "./queue.js";
import { CENSUS_TIME, isBefore, nextTerm, TabGroup, type ErrorFields, type Position } from "./tab-group.js";

/** What a connection reports, as its leader passes it on. */
type Report = ["event", PushEvent] | ["gap", Gap] | ["cursor", string | undefined] | ["state", State] | ["finished", undefined] | ["error", ErrorFields];

/** A message between tabs. */
type Message =
  /** The leader is there. `from` is the position from which its stream continues. */
  | { kind: "leader"; position: Position; from: Position | undefined; cursor: string | undefined; state: State }
  | { kind: "report"; position: Position; cursor: string | undefined; report: Report }
  /** Is a leader there? */
  | { kind: "ping" }
  /** A new leader asks how far the others are. */
  | { kind: "census" }
  | { kind: "count"; position: Position | undefined; cursor: string | undefined }
  | { kind: "send"; message: unknown };

/** The number of events that a tab drops or holds back while it catches up. More are a gap. */
const MAX_CATCH_UP = 1000;

/**
 * One tab's part of a shared connection. The tab that holds the Web Lock is the leader: it has the connection, and broadcasts all that the connection
 * reports.
 *
 * Invariants: a tab passes on reports of the highest term that it knows, in their order and without a hole. A leader's term is higher than those that
 * it knows, so the reports of a frozen leader that wakes are ignored. A new leader resumes at the oldest cursor of all tabs; a tab that is ahead of
 * it drops events up to its own cursor. A tab that has missed something, or begins at a cursor of its own, catches up over a connection of its own,
 * until that connection and the leader report the same event.
 */
export class SharedConnection implements PushConnection {
  state: State = "connecting";
  cursor: string | undefined;

  #url: URL;
  #options: ConnectOptions;
  #group: TabGroup<Message>;
  #id = Math.random().toString(36).slice(2);
  #listeners = new ListenerSet();
  #queues = new ItemQueues(() => {});

  #position: Position | undefined;
  /** While the leader repeats events that this tab has passed on: how many it has repeated. */
  #repeated: number | undefined;
  /** While this tab catches up over a connection of its own. */
  #catchUp: { connection: PushConnection; target: string | undefined; held: (Message & { kind: "report" })[] } | undefined;

  /** The connection, if this tab is the leader. */
  #connection: PushConnection | undefined;
  #term = "";
  /** The highest term of all messages that this tab has heard. */
  #highestTerm = "";
  #from: Position | undefined;
  #counts: { position: Position | undefined; cursor: string | undefined }[] | undefined;

  constructor(url: URL, key: string, lease: number, options: ConnectOptions) {
    this.#url = url;
    this.#options = options;
    if (options.since && options.since !== "now") this.cursor = options.since;
    const name = `tower-push ${JSON.stringify([url.href, key])}`;
    this.#group = new TabGroup<Message>(name, lease, { kind: "ping" }, {
      onJoin: () => {},
      onLeave: () => this.#stopCatchUp(),
      onElect: () => this.#takeOver(),
      onDepose: () => this.#resign(),
      onMessage: (message) => this.#onMessage(message),
    });
    options.signal?.addEventListener("abort", () => this.close(), { signal: this.#group.stopped });
    if (options.signal?.aborted) this.state = "closed";
    else this.#group.join();
  }

  get transport(): string | undefined {
    return this.#connection?.transport;
  }

  on(name: string, listener: (value: any) => void): () => void {
    return this.#listeners.add(name, listener);
  }

  send(message: unknown): boolean {
    if (this.#connection) return this.#connection.send(message);
    const isSent = this.#group.hasLeader && this.state === "open";
    if (isSent) this.#group.post({ kind: "send", message });
    return isSent;
  }

  close(): void {
    this.#end("closed");
  }

  [Symbol.asyncIterator](): AsyncIterator<PushEvent | PushGap, undefined> {
    return this.#queues.read();
  }

  #resign(): void {
    this.#connection?.close();
    this.#connection = undefined;
    this.#counts = undefined;
  }

  /** Asks the others for their positions, and resumes at the oldest one. */
  async #takeOver(): Promise<void> {
    if (this.#catchUp) this.#position = undefined;
    this.#stopCatchUp();
    const { lead } = this.#group;
    this.#counts = [{ position: this.#position, cursor: this.cursor }];
    this.#group.post({ kind: "census" });
    await new Promise((resolve) => setTimeout(resolve, CENSUS_TIME));
    if (this.#group.lead !== lead || !this.#counts) return;
    // Cursors have no order: a tab that has only a cursor, and no position, catches up by itself.
    const known = this.#counts.filter(({ position }) => position);
    const [first = this.#counts[0]!] = known;
    const oldest = known.reduce((one, other) => (isBefore(other.position, one.position) ? other : one), first);
    this.#counts = undefined;
    this.#lead(oldest.cursor, oldest.position);
  }

  /** Opens a connection at a cursor, under a new term. */
  #lead(cursor: string | undefined, from: Position | undefined): void {
    this.#connection?.close();
    this.#term = this.#highestTerm = nextTerm(this.#highestTerm, this.#id);
    this.#from = from;
    let sequence = 0;
    const start: Position = [this.#term, 0];
    const hasBareCursor = !this.#position && this.cursor != null && this.cursor !== cursor;
    if (hasBareCursor) this.#startCatchUp(start, cursor);
    else this.#adopt(start, cursor);
    const connection = (this.#connection = connect(this.#url, { ...this.#options, since: cursor ?? "now" }));
    this.#announce(cursor);
    const pass = (...report: Report) => {
      if (connection !== this.#connection) return;
      const message: Message = { kind: "report", position: [this.#term, ++sequence], cursor: connection.cursor, report };
      // First to the others, so that none of them is behind this tab if it is frozen now.
      this.#group.post(message);
      this.#onReport(message);
    };
    connection.on("event", (event) => pass("event", event));
    connection.on("gap", (gap) => pass("gap", gap));
    connection.on("cursor", (cursor) => pass("cursor", cursor));
    connection.on("state", (state) => state !== "closed" && pass("state", state));
    connection.on("finished", () => pass("finished", undefined));
    connection.on("error", ({ message, final, status, code }) => pass("error", { message, final, status, code }));
  }

  #announce(cursor = this.#connection?.cursor): void {
    this.#group.post({ kind: "leader", position: this.#position!, from: this.#from, cursor, state: this.state });
  }

  #onMessage(message: Message): void {
    if ("position" in message && message.position && message.position[0] > this.#highestTerm) this.#highestTerm = message.position[0];
    switch (message.kind) {
      case "ping":
        if (this.#connection) this.#announce();
        break;
      case "census":
        if (!this.#catchUp) this.#group.post({ kind: "count", position: this.#position, cursor: this.cursor });
        break;
      case "count":
        this.#counts?.push(message);
        break;
      case "send":
        this.#connection?.send(message.message);
        break;
      case "leader":
        this.#onLeader(message);
        break;
      case "report":
        this.#group.hearLeader();
        if (this.#position) this.#onReport(message);
    }
  }

  #onLeader({ position, from, cursor, state }: Message & { kind: "leader" }): void {
    if (position[0] < (this.#position?.[0] ?? "")) return;
    this.#group.hearLeader();
    this.#setState(state);
    const own = this.#position;
    const isStart = position[1] === 0;
    // A new tab begins where the leader is, unless it has a cursor. A leader that knew of no position may begin after this tab's cursor.
    let hasMissed = this.cursor != null && this.cursor !== cursor;
    if (own?.[0] === position[0]) hasMissed = isBefore(own, position);
    else if (own) hasMissed = isStart ? (from ? isBefore(own, from) : hasMissed) : true;
    if (hasMissed || this.#catchUp) this.#startCatchUp(position, cursor);
    else if (own?.[0] !== position[0]) this.#adopt(position, cursor);
  }

  /** Follows a leader, who resumes at `cursor` or before it. */
  #adopt(position: Position, cursor: string | undefined): void {
    this.#repeated = this.cursor != null && this.cursor !== cursor ? 0 : undefined;
    this.#position = position;
    this.cursor ??= cursor;
  }

  /** Holds the leader's reports after `position` back, and reads what is before them over a connection of its own. */
  #startCatchUp(position: Position, target: string | undefined): void {
    this.#position = position;
    if (this.#catchUp) return void Object.assign(this.#catchUp, { target, held: [] });
    const connection = connect(this.#url, { ...this.#options, since: this.cursor ?? "now" });
    this.#catchUp = { connection, target, held: [] };
    const pass = (...report: Report) => {
      const catchUp = this.#catchUp;
      if (catchUp?.connection !== connection) return;
      const id = report[0] === "event" ? report[1].id : undefined;
      const index = catchUp.held.findIndex((held) => id != null && held.report[0] === "event" && held.report[1].id === id);
      if (index < 0) this.#pass(report, connection.cursor);
      if (index < 0 && (id == null || id !== catchUp.target)) return;
      this.#stopCatchUp();
      for (const held of catchUp.held.slice(Math.max(0, index))) this.#pass(held.report, held.cursor);
    };
    connection.on("event", (event) => pass("event", event));
    connection.on("gap", (gap) => pass("gap", gap));
    connection.on("finished", () => pass("finished", undefined));
    connection.on("error", ({ message, final, status, code }) => pass("error", { message, final, status, code }));
  }

  #stopCatchUp(): void {
    this.#catchUp?.connection.close();
    this.#catchUp = undefined;
  }

  #onReport(message: Message & { kind: "report" }): void {
    const { position, cursor, report } = message;
    const [term, sequence] = this.#position!;
    if (position[0] < term) return;
    // A hole: the leader's reports up to this one are missing.
    if (position[0] !== term || position[1] !== sequence + 1) return this.#startCatchUp(position, cursor);
    this.#position = position;
    if (!this.#catchUp) return this.#pass(report, cursor);
    if (report[0] === "state") return this.#setState(report[1]);
    // The leader has come to the last event that this tab has passed on.
    if (report[0] === "event" && report[1].id != null && report[1].id === this.cursor) return this.#stopCatchUp();
    this.#catchUp.held.push(message);
    if (this.#catchUp.held.length > MAX_CATCH_UP) this.#catchUp.held = [];
  }

  #pass([name, value]: Report, cursor: string | undefined): void {
    if (name === "event" && this.#isRepeated(value.id)) return;
    if (name === "gap") this.#repeated = undefined;
    if (this.#repeated == null && cursor !== this.cursor) {
      this.cursor = cursor;
      this.#listeners.emit("cursor", cursor);
    }
    if (name === "state") this.#setState(value);
    else if (name === "finished") this.#end("finished");
    else if (name === "error") this.#onError(value);
    else if (name !== "cursor") this.#emit(name, value);
  }

  #emit(name: "event" | "gap", value: PushEvent | Gap): void {
    this.#queues.push(name === "gap" ? { type: "gap", gap: value as Gap } : (value as PushEvent));
    this.#listeners.emit(name, value);
    const { type } = value as PushEvent;
    if (name === "event" && !RESERVED.includes(type)) this.#listeners.emit(type, value);
  }

  /** Returns whether the leader repeats an event that this tab has passed on: the one at this tab's cursor, or one before it. */
  #isRepeated(id: string | undefined): boolean {
    if (this.#repeated == null) return false;
    if (id != null && id === this.cursor) {
      this.#repeated = undefined;
      return true;
    }
    if (++this.#repeated <= MAX_CATCH_UP) return true;
    // The event at the cursor does not come again, so nothing says which events are new.
    this.#repeated = undefined;
    this.#emit("gap", { reason: "unknown" });
    return false;
  }

  #onError({ message, ...fields }: ErrorFields): void {
    const error = new PushError(message, "final", fields);
    this.#listeners.emit("error", error);
    if (fields.final) this.#end("failed", error);
  }

  #setState(state: State): void {
    if (state === this.state) return;
    this.state = state;
    this.#listeners.emit("state", state);
  }

  #end(reason: "closed" | "finished" | "failed", error?: PushError): void {
    if (this.state === "closed") return;
    this.#setState("closed");
    this.#group.stop();
    if (reason === "finished") this.#listeners.emit("finished");
    this.#queues.end(error);
  }
}
