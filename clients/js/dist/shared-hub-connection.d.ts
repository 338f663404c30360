import { type PushEvent, type PushGap, type State } from "./index.js";
import type { PublicationOptions, TopicConnection, TopicOptions } from "./topics.js";
/**
 * One tab's part of a connection to topics that the tabs of a browser share. One tab has a `TopicLeader`, which has a connection with the topics of
 * all tabs. Each tab, also that of the leader, has a `TopicFollower`, which passes on the events of the tab's own topics. The tabs send each other
 * the messages of `shared-hub-messages.ts`.
 */
export declare class SharedHubConnection implements TopicConnection {
    #private;
    constructor(url: URL, key: string, lease: number, options: TopicOptions);
    get state(): State;
    get cursor(): string | undefined;
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
