/** The names of listeners that get no events of this type. */
export const RESERVED = ["event", "gap", "cursor", "state", "finished", "error"];

/** The listeners of a connection, by name. */
export class ListenerSet {
  #listeners = new Map<string, Set<(value: any) => void>>();

  add(name: string, listener: (value: any) => void): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /** Calls the listeners. An error of one is reported, and does not keep the others from being called. */
  emit(name: string, value?: unknown): void {
    for (const listener of this.#listeners.get(name) ?? []) {
      try {
        listener(value);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
