import { DEFAULTS } from "./attempt.js";
import { Consequence } from "./error.js";
import { PushError, type ConnectOptions, type Gap, type PushEvent, type PushGap, type State } from "./index.js";
import { ListenerSet } from "./listeners.js";
import { ItemQueues, type ItemQueue } from "./queue.js";
import type { ErrorFields } from "./reports.js";

/** Where the cursor moves. */
interface Cursor {
  cursor: string | undefined;
}

/** How long a stream that has no cursor is open before its interruption is a gap, in milliseconds: a cursor would have arrived before. */
export const BEGUN_AFTER = 5000;

/** Puts a gap in place of all items that a slow loop has not read but the newest `kept`. */
function dropOldest({ items }: ItemQueue, kept: number): void {
  let missed: number | null = 0;
  for (const { gap } of items.splice(0, items.length - kept)) {
    const count: number | null | undefined = gap ? gap.missed : 1;
    missed = missed == null || count == null ? null : missed + count;
  }
  items.unshift({ type: "gap", gap: { reason: "lagged", missed } });
}

/**
 * The side of a shared connection that its user sees: the state, the cursor, and what listeners and loops get. Nothing follows the state `closed` but
 * `finished`. The connection of all tabs waits for no loop of one of them: a loop that lags gets a gap.
 */
export class ConnectionOutput {
  state: State = "connecting";
  cursor: string | undefined;

  #listeners = new ListenerSet();
  #queues = new ItemQueues(() => {});
  #hasBegun = false;
  #openedAt = Infinity;
  #owesGap = false;
  #isTrimming = false;
  #maxBuffered: number;
  #onEnd: () => void;

  /** Calls `onEnd` once, when the state has become `closed`. */
  constructor({ maxBuffered = DEFAULTS.maxBuffered }: ConnectOptions, onEnd: () => void) {
    this.#maxBuffered = maxBuffered;
    this.#onEnd = onEnd;
  }

  /** Whether events may be missing if the connection goes on without a cursor. */
  get hasBegun(): boolean {
    return this.#hasBegun || performance.now() - this.#openedAt > BEGUN_AFTER;
  }

  on(name: string, listener: (value: any) => void): () => void {
    return this.#listeners.add(name, listener);
  }

  /** The items for one loop. */
  read(): AsyncIterator<PushEvent | PushGap, undefined> {
    return this.#queues.read();
  }

  /** Calls only the listeners of the event's type. */
  emitOfType(event: PushEvent): void {
    if (this.state !== "closed") this.#listeners.emitOfType(event);
  }

  /** Moves the cursor, and passes on the event, also if a listener of `cursor` closes the connection. */
  emitEvent(event: PushEvent, { cursor }: Cursor = this): void {
    if (this.state === "closed") return;
    this.#hasBegun = true;
    this.setCursor(cursor);
    this.#queue(event);
    this.#listeners.emitEvent(event);
  }

  /** Moves the cursor, and passes on the gap, like `emitEvent`. */
  emitGap(gap: Gap, { cursor }: Cursor = this): void {
    if (this.state === "closed") return;
    this.setCursor(cursor);
    this.#queue({ type: "gap", gap });
    this.#listeners.emit("gap", gap);
  }

  #queue(item: PushEvent | PushGap): void {
    this.#queues.push(item);
    if (this.#isTrimming || this.#queues.length <= this.#maxBuffered) return;
    this.#isTrimming = true;
    // A loop that is not slow reads after this task, in which many events can arrive.
    setTimeout(() => {
      this.#isTrimming = false;
      for (const queue of this.#queues.queues)
        if (queue.items.length > this.#maxBuffered) dropOldest(queue, Math.ceil(this.#maxBuffered / 2));
    });
  }

  /**
   * Passes on that events are missing, as soon as the connection is open: a page that then loads its data misses nothing between the data and the
   * next event.
   */
  emitUnknownGap(): void {
    this.#owesGap = this.state !== "open";
    if (!this.#owesGap) this.emitGap({ reason: "unknown" });
  }

  /** Reports an error. A final one ends the connection. */
  emitError({ message, ...fields }: ErrorFields): void {
    if (this.state === "closed") return;
    const error = new PushError(message, Consequence.Final, fields);
    const listeners = this.#listeners.emit("error", error);
    if (!fields.final) return;
    // Without a listener and a loop, nobody would learn of it.
    if (!listeners && !this.#queues.hasLoop) console.error(error);
    this.#end(undefined, error);
  }

  setCursor(cursor: string | undefined): void {
    if (cursor === this.cursor || this.state === "closed") return;
    this.cursor = cursor;
    this.#listeners.emit("cursor", cursor);
  }

  /** Sets the state to that of the leader's connection. If that is closed, this connection goes on with the next leader. */
  setState(state: State): void {
    if (state === this.state || state === "closed" || this.state === "closed") return;
    this.#hasBegun = this.hasBegun;
    this.#openedAt = state === "open" ? performance.now() : Infinity;
    this.state = state;
    this.#listeners.emit("state", state);
    if (this.#owesGap) this.emitUnknownGap();
  }

  finish(): void {
    this.#end("finished");
  }

  close(): void {
    this.#end();
  }

  #end(reason?: "finished", error?: PushError): void {
    if (this.state === "closed") return;
    this.state = "closed";
    this.#listeners.emit("state", "closed");
    this.#onEnd();
    if (reason) this.#listeners.emit(reason);
    this.#queues.end(error);
  }
}
