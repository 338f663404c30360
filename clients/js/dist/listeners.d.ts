import type { PushEvent } from "./types.js";
type Listeners = Map<string, Set<(value: any) => void>>;
/** The listeners of a connection, by name. */
export declare class ListenerSet {
    #private;
    add(name: string, listener: (value: any) => void): () => void;
    /** Calls the listeners of all events, and those of the event's type. */
    emitEvent(event: PushEvent): void;
    /** Calls only the listeners of the event's type. */
    emitOfType(event: PushEvent): void;
    /**
     * Calls the listeners of this reserved name. An error of one is reported, and does not keep the others from being called. Returns the number of
     * listeners, or `undefined` if there was never one.
     */
    emit(name: string, value?: unknown, all?: Listeners): number | undefined;
}
export {};
