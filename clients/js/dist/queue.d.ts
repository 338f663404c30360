import type { PushEvent, PushGap } from "./types.js";
/** The items that a loop over a connection has not read yet. */
export interface ItemQueue {
    items: (PushEvent | PushGap)[];
    wake: () => void;
}
/** The queues of all loops over a connection. */
export declare class ItemQueues {
    #private;
    /** Only modules of this package read it. */
    queues: ItemQueue[];
    /** Calls `onRead` when a loop has read an item or has ended. */
    constructor(onRead: () => void);
    /** The length of the longest queue. */
    get length(): number;
    get hasLoop(): boolean;
    push(item: PushEvent | PushGap): void;
    /** No item follows. The loops throw `error` after their last item if there is one. */
    end(error?: unknown): void;
    read(): AsyncGenerator<PushEvent | PushGap, undefined>;
}
