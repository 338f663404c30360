import { type PushEvent, type PushGap, type State } from "./index.js";
import type { PublicationOptions, TopicConnection, TopicOptions } from "./topics.js";
/**
 * A connection to topics of a hub, as `docs/hub-protocol.md` describes them.
 *
 * Invariants: the address of the next attempt names all topics, and names a topic as new until the cursor has moved while the stream had the topic.
 * So a topic's first events are not lost with a connection.
 */
export declare class HubConnection implements TopicConnection {
    #private;
    /** Called when the cursor has become valid for quiet topics. Only other modules of this package set it. */
    onQuiet: () => void;
    constructor(url: URL, options: TopicOptions);
    get cursor(): string | undefined;
    get state(): State;
    get transport(): string | undefined;
    get topics(): string[];
    /** The topics for which the cursor is not valid: they begin in the stream as for a new client. Only other modules of this package read it. */
    get freshTopics(): string[];
    on(name: string, listener: (value: any) => void): () => void;
    [Symbol.asyncIterator](): AsyncGenerator<PushEvent | PushGap, undefined>;
    send(message: unknown): boolean;
    close(): void;
    subscribe(...topics: string[]): void;
    unsubscribe(...topics: string[]): void;
    publish(topic: string, data: unknown, { event, key, echo }?: PublicationOptions): Promise<string>;
}
