import { type ConnectOptions, type Gap, type PushEvent, type PushGap, type State } from "./index.js";
import type { ErrorFields } from "./reports.js";
/** Where the cursor moves. */
interface Cursor {
    cursor: string | undefined;
}
/** How long a stream that has no cursor is open before its interruption is a gap, in milliseconds: a cursor would have arrived before. */
export declare const BEGUN_AFTER = 5000;
/**
 * The side of a shared connection that its user sees: the state, the cursor, and what listeners and loops get. Nothing follows the state `closed` but
 * `finished`. The connection of all tabs waits for no loop of one of them: a loop that lags gets a gap.
 */
export declare class ConnectionOutput {
    #private;
    state: State;
    cursor: string | undefined;
    /** Calls `onEnd` once, when the state has become `closed`. */
    constructor({ maxBuffered }: ConnectOptions, onEnd: () => void);
    /** Whether events may be missing if the connection goes on without a cursor. */
    get hasBegun(): boolean;
    on(name: string, listener: (value: any) => void): () => void;
    /** The items for one loop. */
    read(): AsyncIterator<PushEvent | PushGap, undefined>;
    /** Calls only the listeners of the event's type. */
    emitOfType(event: PushEvent): void;
    /** Moves the cursor, and passes on the event, also if a listener of `cursor` closes the connection. */
    emitEvent(event: PushEvent, { cursor }?: Cursor): void;
    /** Moves the cursor, and passes on the gap, like `emitEvent`. */
    emitGap(gap: Gap, { cursor }?: Cursor): void;
    /**
     * Passes on that events are missing, as soon as the connection is open: a page that then loads its data misses nothing between the data and the
     * next event.
     */
    emitUnknownGap(): void;
    /** Reports an error. A final one ends the connection. */
    emitError({ message, ...fields }: ErrorFields): void;
    setCursor(cursor: string | undefined): void;
    /** Sets the state to that of the leader's connection. If that is closed, this connection goes on with the next leader. */
    setState(state: State): void;
    finish(): void;
    close(): void;
}
export {};
