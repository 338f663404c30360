import type { PushEvent } from "./types.js";

type Listeners = Map<string, Set<(value: any) => void>>;

/** The names of listeners that get no events of this type. */
const RESERVED = ["event", "gap", "cursor", "state", "finished", "error"];

/** The listeners of a connection, by name. */
export class ListenerSet {
  #reserved: Listeners = new Map();
  /** The listeners of the events of one type. */
  #ofTypes: Listeners = new Map();

  add(name: string, listener: (value: any) => void): () => void {
    const all = RESERVED.includes(name) ? this.#reserved : this.#ofTypes;
    const listeners = all.get(name) ?? new Set();
    all.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /** Calls the listeners of all events, and those of the event's type. */
  emitEvent(event: PushEvent): void {
    this.emit("event", event);
    this.emitOfType(event);
  }

  /** Calls only the listeners of the event's type. */
  emitOfType(event: PushEvent): void {
    this.emit(event.type, event, this.#ofTypes);
  }

  /**
   * Calls the listeners of this reserved name. An error of one is reported, and does not keep the others from being called. Returns the number of
   * listeners, or `undefined` if there was never one.
   */
  emit(name: string, value?: unknown, all = this.#reserved): number | undefined {
    const listeners = all.get(name);
    if (!listeners) return undefined;
    for (const listener of listeners) {
      try {
        listener(value);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
    return listeners.size;
  }
}
