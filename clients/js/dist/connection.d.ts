import type { ConnectOptions, PushConnection, PushEvent, PushGap, State } from "./types.js";
/**
 * One connection: a loop of attempts, one after another.
 *
 * Invariants: at most one attempt is under way, and an attempt that was aborted reports nothing. The cursor moves before the event is passed on,
 * and each attempt begins at the cursor, so a server that resumes after the cursor passes on each event once.
 */
export declare class Connection implements PushConnection {
    #private;
    state: State;
    transport: string | undefined;
    cursor: string | undefined;
    /** The address of the next attempt. Only other modules of this package change it. */
    streamUrl: URL;
    /** Called when an attempt is open, also if the state was `open` before. Only other modules of this package set it. */
    onOpen?: () => void;
    /** Called each time that the client has read an open stream for some milliseconds. Only other modules of this package set it. */
    onTick?: (elapsed: number) => void;
    constructor(url: string | URL, options: ConnectOptions);
    on(name: string, listener: (value: any) => void): () => void;
    send(message: unknown): boolean;
    /** Ends the attempt that is under way. The next one follows at once, at the cursor. */
    reconnect(): void;
    close(): void;
    [Symbol.asyncIterator](): AsyncIterator<PushEvent | PushGap, undefined>;
}
