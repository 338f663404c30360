import { type PushEvent, type PushGap, type State } from "./index.js";
import { type PublicationOptions, type TopicConnection, type TopicOptions } from "./topics.js";
/**
 * One tab's part of a connection to topics that the tabs of a browser share. One tab, the leader, has a connection with the topics of all tabs. The
 * leader broadcasts everything that its connection reports: these reports are the leader's stream.
 *
 * Invariants:
 * - A tab handles the reports of the highest term that it knows, in their order and without a hole. It passes on the events of the topics that it
 *   follows.
 * - `cursor` is the cursor of the leader's connection at the tab's position. If the tab misses events, `cursor` stays before the missing events.
 *
 * A tab misses events if its reports have a hole, or if it begins to follow a topic. The tab reads the missing events from the server. It also reads
 * the events after the cursor at which the leader's stream was. Events that both reads have will come in the leader's stream, too, and the tab drops
 * them there.
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
