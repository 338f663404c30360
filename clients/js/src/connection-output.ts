import { PushError, type Gap, type PushEvent, type PushGap, type State } from "./index.js";
import { ListenerSet, RESERVED } from "./listeners.js";
import { ItemQueues } from "./queue.js";
import type { ErrorFields } from "./reports.js";

/** The side of a shared connection that its user sees: the state, the cursor, and what listeners and loops get. */
export class ConnectionOutput {
  state: State = "connecting";
  cursor: string | undefined;

  #listeners = new ListenerSet();
  #queues = new ItemQueues(() => {});
  #onEnd: () => void;

  /** Calls `onEnd` once, when the state has become `closed`. */
  constructor(onEnd: () => void) {
    this.#onEnd = onEnd;
  }

  on(name: string, listener: (value: any) => void): () => void {
    return this.#listeners.add(name, listener);
  }

  /** The items for one loop. */
  read(): AsyncIterator<PushEvent | PushGap, undefined> {
    return this.#queues.read();
  }

  /** Calls only listeners of this name. */
  emit(name: string, value: unknown): void {
    this.#listeners.emit(name, value);
  }

  emitEvent(event: PushEvent): void {
    this.#queues.push(event);
    this.#listeners.emit("event", event);
    if (!RESERVED.includes(event.type)) this.#listeners.emit(event.type, event);
  }

  emitGap(gap: Gap): void {
    this.#queues.push({ type: "gap", gap });
    this.#listeners.emit("gap", gap);
  }

  /** Reports an error. A final one ends the connection. */
  emitError({ message, ...fields }: ErrorFields): void {
    const error = new PushError(message, "final", fields);
    this.#listeners.emit("error", error);
    if (fields.final) this.#end(undefined, error);
  }

  setCursor(cursor: string | undefined): void {
    if (cursor === this.cursor) return;
    this.cursor = cursor;
    this.#listeners.emit("cursor", cursor);
  }

  setState(state: State): void {
    if (state === this.state || this.state === "closed") return;
    this.state = state;
    this.#listeners.emit("state", state);
  }

  finish(): void {
    this.#end("finished");
  }

  close(): void {
    this.#end();
  }

  #end(reason?: "finished", error?: PushError): void {
    if (this.state === "closed") return;
    this.setState("closed");
    this.#onEnd();
    if (reason) this.#listeners.emit(reason);
    this.#queues.end(error);
  }
}
