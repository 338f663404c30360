import { ConnectionOutput } from "./connection-output.js";
import { connect, type ConnectOptions, type PushConnection, type PushEvent, type PushGap, type State } from "./index.js";
import { sendable } from "./json.js";
import { listenToReports, type Report } from "./reports.js";
import { CENSUS_TIME, isBefore, nextTerm, TabGroup, type Position } from "./tab-group.js";

/** A message between tabs. */
type Message =
  | LeaderMessage
  | ReportMessage
  /** Is a leader there? */
  | { kind: "ping" }
  /** A new leader asks how far the others are. */
  | { kind: "census" }
  | CountMessage
  | { kind: "send"; message: unknown };

/** The leader is there. `from` is the position from which its stream continues. */
interface LeaderMessage {
  kind: "leader";
  position: Position;
  from: Position | undefined;
  cursor: string | undefined;
  state: State;
}

/** What the leader's connection reports. `cursor` is the cursor after the report. */
interface ReportMessage {
  kind: "report";
  position: Position;
  cursor: string | undefined;
  report: Report;
}

/** How far a tab is. */
interface CountMessage {
  kind: "count";
  position: Position | undefined;
  cursor: string | undefined;
}

/** The connection of the leader, and where the leader's reports are. */
interface Lead {
  connection: PushConnection;
  term: string;
  /** The number of the last report. */
  sequence: number;
  /** The position from which the reports continue, if they continue those of an earlier leader. */
  from: Position | undefined;
}

/** The number of events that a tab drops or holds back while it catches up. More are a gap. */
const MAX_CATCH_UP = 1000;

/**
 * One tab's part of a shared connection. The tab that holds the Web Lock is the leader: it has the connection, and broadcasts all that the connection
 * reports.
 *
 * Invariants: a tab passes on reports of the highest term that it knows, in their order and without a hole. A leader's term is higher than those that
 * it knows, so the reports of a frozen leader that wakes are ignored. A new leader resumes at the oldest cursor of all tabs; a tab that is ahead of
 * it drops events up to its own cursor. A tab that has missed something, or begins at a cursor of its own, catches up over a connection of its own,
 * until that connection and the leader report the same event. Without a cursor, it cannot catch up, and passes on a gap.
 */
export class SharedConnection implements PushConnection {
  #url: URL;
  #options: ConnectOptions;
  #group: TabGroup<Message>;
  #id = Math.random().toString(36).slice(2);
  #output: ConnectionOutput;

  #position: Position | undefined;
  /** While the leader repeats events that this tab has passed on: how many it has repeated. */
  #repeated: number | undefined;
  /** While this tab catches up over a connection of its own. */
  #catchUp: { connection: PushConnection; target: string | undefined; held: ReportMessage[] } | undefined;

  /** `undefined` if this tab is not the leader. */
  #lead: Lead | undefined;
  /** The highest term of all messages that this tab has heard. */
  #highestTerm = "";
  /** The answers to a new leader's question. `undefined` when this tab does not wait for answers. */
  #counts: CountMessage[] | undefined;

  constructor(url: URL, key: string, lease: number, options: ConnectOptions) {
    const { since, signal } = options;
    this.#url = url;
    this.#options = options;
    this.#output = new ConnectionOutput(options, () => this.#group.stop());
    if (since && since !== "now") this.#output.cursor = since;
    const name = `tower-push ${JSON.stringify([url.href, key])}`;
    this.#group = new TabGroup<Message>(name, lease, { kind: "ping" }, {
      onJoin: () => {},
      onLeave: () => {
        this.#output.setState("paused");
        this.#abandonCatchUp();
      },
      onElect: () => this.#takeOver(),
      onDepose: () => this.#resign(),
      onMessage: (message) => this.#onMessage(message),
    });
    signal?.addEventListener("abort", () => this.close(), { signal: this.#group.stopped });
    if (signal?.aborted) this.close();
    this.#group.join();
  }

  get state(): State {
    return this.#output.state;
  }

  get cursor(): string | undefined {
    return this.#output.cursor;
  }

  get transport(): string | undefined {
    return this.#lead?.connection.transport;
  }

  on(name: string, listener: (value: any) => void): () => void {
    return this.#output.on(name, listener);
  }

  send(message: unknown): boolean {
    if (this.#lead) return this.#lead.connection.send(message);
    const isSent = this.#group.hasLeader && this.state === "open";
    if (isSent) this.#group.post({ kind: "send", message: sendable(message) });
    return isSent;
  }

  close(): void {
    this.#output.close();
  }

  [Symbol.asyncIterator](): AsyncIterator<PushEvent | PushGap, undefined> {
    return this.#output.read();
  }

  #resign(): void {
    const lead = this.#lead;
    this.#lead = undefined;
    this.#counts = undefined;
    lead?.connection.close();
  }

  /** Asks the others for their positions, and resumes at the oldest one. */
  async #takeOver(): Promise<void> {
    this.#abandonCatchUp();
    const counts: CountMessage[] = (this.#counts = [this.#count()]);
    this.#group.post({ kind: "census" });
    await new Promise((resolve) => setTimeout(resolve, CENSUS_TIME));
    // This tab may have been deposed, and elected again, during the wait.
    if (this.#counts !== counts) return;
    this.#counts = undefined;
    // Cursors have no order: a tab that has only a cursor, and no position, catches up by itself.
    const known = counts.filter(({ position, cursor }) => position && cursor != null);
    const [first = counts[0]!] = known;
    const oldest = known.reduce((one, other) => (isBefore(other.position, one.position) ? other : one), first);
    this.#open(oldest.cursor, oldest.position);
  }

  #count(): CountMessage {
    return { kind: "count", position: this.#position, cursor: this.cursor };
  }

  /** Opens a connection at a cursor, under a new term. */
  #open(cursor: string | undefined, from: Position | undefined): void {
    const term = (this.#highestTerm = nextTerm(this.#highestTerm, this.#id));
    const start: Position = [term, 0];
    const hasBareCursor = !this.#position && this.cursor != null && this.cursor !== cursor;
    const connection = connect(this.#url, { ...this.#options, since: cursor ?? "now" });
    const lead: Lead = (this.#lead = { connection, term, sequence: 0, from });
    this.#output.setState(connection.state);
    // A listener may have closed this connection.
    if (lead !== this.#lead) return;
    if (hasBareCursor) this.#startCatchUp(start, cursor);
    else this.#enterTerm(start, cursor);
    this.#announce(lead);
    listenToReports(connection, (...report) => {
      if (lead !== this.#lead) return;
      const message: ReportMessage = { kind: "report", position: [term, ++lead.sequence], cursor: connection.cursor, report };
      // First to the others, so that none of them is behind this tab if it is frozen now.
      this.#group.post(message);
      this.#onReport(message);
    });
  }

  #announce({ connection, term, sequence, from }: Lead): void {
    this.#group.post({ kind: "leader", position: [term, sequence], from, cursor: connection.cursor, state: connection.state });
  }

  #onMessage(message: Message): void {
    if ("position" in message && message.position && message.position[0] > this.#highestTerm) this.#highestTerm = message.position[0];
    switch (message.kind) {
      case "ping":
        if (this.#lead) this.#announce(this.#lead);
        break;
      case "census":
        if (!this.#catchUp) this.#group.post(this.#count());
        break;
      case "count":
        this.#counts?.push(message);
        break;
      case "send":
        this.#lead?.connection.send(message.message);
        break;
      case "leader":
        this.#onLeader(message);
        break;
      case "report":
        this.#group.hearLeader();
        if (this.#position) this.#onReport(message);
    }
  }

  #onLeader({ position, from, cursor, state }: LeaderMessage): void {
    if (position[0] < (this.#position?.[0] ?? "")) return;
    this.#group.hearLeader();
    this.#output.setState(state);
    // A listener has closed this connection.
    if (this.state === "closed") return;
    const own = this.#position;
    const isStart = position[1] === 0;
    // A new tab begins where the leader is, unless it has a cursor. A leader that knew of no position may begin after this tab's cursor.
    let hasMissed = this.cursor != null && this.cursor !== cursor;
    if (own?.[0] === position[0]) hasMissed = isBefore(own, position);
    else if (own) hasMissed = isStart ? (from ? isBefore(own, from) : hasMissed) : true;
    if (hasMissed || this.#catchUp) this.#startCatchUp(position, cursor);
    else if (own?.[0] !== position[0]) this.#enterTerm(position, cursor);
  }

  /** Follows a new leader, who resumes at `cursor` or before it. */
  #enterTerm(position: Position, cursor: string | undefined): void {
    // Without this tab's cursor, the new leader cannot have resumed where the last one has ended.
    if (this.#position && this.cursor == null && this.#output.hasBegun) this.#output.emitUnknownGap();
    this.#adopt(position, cursor);
  }

  #adopt(position: Position, cursor: string | undefined): void {
    this.#repeated = this.cursor != null && this.cursor !== cursor ? 0 : undefined;
    this.#position = position;
    this.#output.cursor ??= cursor;
  }

  /** Holds the leader's reports after `position` back, and reads what is before them over a connection of its own. Without a cursor, it is a gap. */
  #startCatchUp(position: Position, target: string | undefined): void {
    if (this.cursor == null) {
      this.#stopCatchUp();
      this.#adopt(position, target);
      return this.#output.emitUnknownGap();
    }
    this.#repeated = undefined;
    this.#position = position;
    if (this.#catchUp) return void Object.assign(this.#catchUp, { target, held: [] });
    const connection = connect(this.#url, { ...this.#options, since: this.cursor });
    this.#catchUp = { connection, target, held: [] };
    listenToReports(connection, (...report) => {
      const catchUp = this.#catchUp;
      // The state is that of the leader's connection.
      if (catchUp?.connection !== connection || report[0] === "state") return;
      const id = report[0] === "event" ? report[1].id : undefined;
      const index = catchUp.held.findIndex((held) => id != null && held.report[0] === "event" && held.report[1].id === id);
      if (index < 0) this.#pass(report, connection.cursor);
      if (index < 0 && (id == null || id !== catchUp.target)) return;
      this.#stopCatchUp();
      for (const held of catchUp.held.slice(Math.max(0, index))) this.#pass(held.report, held.cursor);
    });
  }

  /** Stops before this tab has come to its position in the leader's reports. Only the cursor says how far it is. */
  #abandonCatchUp(): void {
    if (this.#catchUp) this.#position = undefined;
    this.#stopCatchUp();
  }

  #stopCatchUp(): void {
    this.#catchUp?.connection.close();
    this.#catchUp = undefined;
  }

  #onReport(message: ReportMessage): void {
    const { position, cursor, report } = message;
    const [term, sequence] = this.#position!;
    if (position[0] < term) return;
    // A hole: the leader's reports up to this one are missing.
    if (position[0] !== term || position[1] !== sequence + 1) {
      if (report[0] === "state") this.#output.setState(report[1]);
      if (this.state === "closed") return;
      const canCatchUp = this.cursor != null;
      this.#startCatchUp(position, canCatchUp ? cursor : undefined);
      if (canCatchUp) return;
    }
    this.#position = position;
    if (!this.#catchUp) return this.#pass(report, cursor);
    if (report[0] === "state") return this.#output.setState(report[1]);
    // The leader has come to the last event that this tab has passed on.
    if (report[0] === "event" && report[1].id != null && report[1].id === this.cursor) return this.#stopCatchUp();
    this.#catchUp.held.push(message);
    if (this.#catchUp.held.length > MAX_CATCH_UP) this.#catchUp.held = [];
  }

  #pass([name, value]: Report, cursor: string | undefined): void {
    if (name === "event" && this.#isRepeated(value.id)) return;
    if (name === "gap") this.#repeated = undefined;
    // Events that the leader repeats do not move this tab back.
    const moved = this.#repeated == null ? { cursor } : this.#output;
    if (name === "event") return this.#output.emitEvent(value, moved);
    if (name === "gap") return this.#output.emitGap(value, moved);
    this.#output.setCursor(moved.cursor);
    if (name === "state") this.#output.setState(value);
    else if (name === "finished") this.#output.finish();
    else if (name === "error") this.#output.emitError(value);
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
    this.#output.emitGap({ reason: "unknown" });
    return false;
  }
}
