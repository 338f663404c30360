import { type ConnectOptions, type PushConnection, type PushEvent, type PushGap, type State } from "./index.js";
/**
 * One tab's part of a shared connection. The tab that holds the Web Lock is the leader: it has the connection, and broadcasts all that the connection
 * reports.
 *
 * Invariants: a tab passes on reports of the highest term that it knows, in their order and without a hole. A leader's term is higher than those that
 * it knows, so the reports of a frozen leader that wakes are ignored. A new leader resumes at the oldest cursor of all tabs; a tab that is ahead of
 * it drops events up to its own cursor. A tab that has missed something, or begins at a cursor of its own, catches up over a connection of its own,
 * until that connection and the leader report the same event. Without a cursor, it cannot catch up, and passes on a gap.
 */
export declare class SharedConnection implements PushConnection {
    #private;
    constructor(url: URL, key: string, lease: number, options: ConnectOptions);
    get state(): State;
    get cursor(): string | undefined;
    get transport(): string | undefined;
    on(name: string, listener: (value: any) => void): () => void;
    send(message: unknown): boolean;
    close(): void;
    [Symbol.asyncIterator](): AsyncIterator<PushEvent | PushGap, undefined>;
}
