/** The names of listeners that get no events of this type. */
export declare const RESERVED: string[];
/** The listeners of a connection, by name. */
export declare class ListenerSet {
    #private;
    add(name: string, listener: (value: any) => void): () => void;
    /** Calls the listeners. An error of one is reported, and does not keep the others from being called. */
    emit(name: string, value?: unknown): void;
}
