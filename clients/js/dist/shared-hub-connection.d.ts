import { type PushEvent, type PushGap, type State } from "./index.js";
import { type PublicationOptions, type TopicConnection, type TopicOptions } from "./topics.js";
/**
 * One tab's part of a shared connection to topics. The leader's connection has the topics of all tabs, and the leader broadcasts all that it reports.
 *
 * Invariants: a tab handles the reports of the highest term that it knows, in their order and without a hole, and passes on those of the topics that it
 * follows. `cursor` is that of the connection at the tab's position, unless the tab misses events: then it stays where the missing events begin. A tab
 * misses events after a hole, and of a topic that it follows anew. It reads those from the server, first up to now, and then from the cursor where the
 * leader's stream was: the events that both reads have will come in the stream, too, and are dropped there.
 */
export declare class SharedHubConnection implements TopicConnection {
    #private;
    state: State;
    cursor: string | undefined;
    constructor(url: URL, key: string, lease: number, options: TopicOptions);
    get transport(): string | undefined;
    get topics(): string[];
    on(name: string, listener: (value: any) => void): () => void;
    [Symbol.asyncIterator](): AsyncIterator<PushEvent | PushGap, undefined>;
    send(message: unknown): boolean;
    subscribe(...topics: string[]): void;
    unsubscribe(...topics: string[]): void;
    publish(topic: string, data: unknown, { key, ...rest }?: PublicationOptions): Promise<string>;
    close(): void;
}
