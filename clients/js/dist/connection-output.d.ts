import { type Gap, type PushEvent, type PushGap, type State } from "./index.js";
import type { ErrorFields } from "./reports.js";
/** The side of a shared connection that its user sees: the state, the cursor, and what listeners and loops get. */
export declare class ConnectionOutput {
    #private;
    state: State;
    cursor: string | undefined;
    /** Calls `onEnd` once, when the state has become `closed`. */
    constructor(onEnd: () => void);
    on(name: string, listener: (value: any) => void): () => void;
    /** The items for one loop. */
    read(): AsyncIterator<PushEvent | PushGap, undefined>;
    /** Calls only listeners of this name. */
    emit(name: string, value: unknown): void;
    emitEvent(event: PushEvent): void;
    emitGap(gap: Gap): void;
    /** Reports an error. A final one ends the connection. */
    emitError({ message, ...fields }: ErrorFields): void;
    setCursor(cursor: string | undefined): void;
    setState(state: State): void;
    finish(): void;
    close(): void;
}
