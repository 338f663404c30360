import type { PushEvent, PushGap } from "./types.js";

/** The items that a loop over a connection has not read yet. */
export interface ItemQueue {
  items: (PushEvent | PushGap)[];
  wake: () => void;
}

/** The queues of all loops over a connection. */
export class ItemQueues {
  /** Only modules of this package read it. */
  queues: ItemQueue[] = [];
  #end: { error: unknown } | undefined;
  #onRead: () => void;

  /** Calls `onRead` when a loop has read an item or has ended. */
  constructor(onRead: () => void) {
    this.#onRead = onRead;
  }

  /** The length of the longest queue. */
  get length(): number {
    let max = 0;
    for (const { items } of this.queues) max = Math.max(max, items.length);
    return max;
  }

  get hasLoop(): boolean {
    return !!this.queues[0];
  }

  push(item: PushEvent | PushGap): void {
    for (const queue of this.queues) {
      queue.items.push(item);
      queue.wake();
    }
  }

  /** No item follows. The loops throw `error` after their last item if there is one. */
  end(error?: unknown): void {
    this.#end = { error };
    for (const queue of this.queues) queue.wake();
  }

  async *read(): AsyncGenerator<PushEvent | PushGap, undefined> {
    const queue: ItemQueue = { items: [], wake: () => {} };
    this.queues.push(queue);
    try {
      for (;;) {
        const item = queue.items.shift();
        if (item) {
          this.#onRead();
          yield item;
        } else if (this.#end) {
          if (this.#end.error) throw this.#end.error;
          return;
        } else await new Promise<void>((resolve) => (queue.wake = resolve));
      }
    } finally {
      this.queues = this.queues.filter((other) => other !== queue);
      this.#onRead();
    }
  }
}
