/**
 * One connection to several topics of a hub. The topics may change while the connection is open.
 *
 * ```ts
 * import { connect } from "tower-push/topics";
 *
 * const push = connect("/events", { topics: ["news"] });
 * push.on("event", ({ topic, data }) => show(topic, data));
 * push.subscribe("sport");
 * ```
 *
 * @module
 */
import { PushError, type ConnectOptions, type PushConnection } from "./index.js";
/** A pattern: the topics that begin with `prefix`; with a `suffix`, those that have one segment without a slash between `prefix` and `suffix`. */
export interface TopicPattern {
    prefix: string;
    suffix?: string;
}
/** The options of a connection to topics. */
export interface TopicOptions extends ConnectOptions {
    /** The first topics. May be empty if there is a pattern, or if `transports` is `["websocket"]`. */
    topics: string[];
    /** Patterns of topics, for the lifetime of the connection. The server must accept patterns. Default: none. */
    patterns?: TopicPattern[];
    /** The name of the query parameter that names a topic. Default: `topic`. */
    topicParameter?: string;
    /** Whether the server accepts commands on a WebSocket. If not, the connection is opened anew when its topics change. Default: `true`. */
    commands?: boolean;
}
/** The options of a publication. */
export interface PublicationOptions {
    /** The event's type. Default: none. */
    event?: string;
    /** The idempotency key, at most 128 bytes. The server publishes one event for each key. Default: a random key. */
    key?: string;
    /** Whether this connection gets the event too. Default: `true`. */
    echo?: boolean;
}
/**
 * A connection to topics. Each event is passed on once, also if the server repeats one of the last 256.
 *
 * Listeners of `hub.refused` get the refusals of topics, as events whose data has `status` and `message`. A refused topic is no longer among
 * `topics`. Listeners of `event` do not get the hub's answers. They get the events of members: `hub.members`, `hub.join`, `hub.update` and
 * `hub.leave`.
 */
export interface TopicConnection extends PushConnection {
    /** The topics of the connection. */
    readonly topics: string[];
    /** Adds topics. Each begins where a new client begins, usually with its last value. */
    subscribe(...topics: string[]): void;
    /**
     * Removes topics. Throws if neither a topic nor a pattern would be left, because then only a WebSocket could be opened, unless `transports` is
     * `["websocket"]`.
     */
    unsubscribe(...topics: string[]): void;
    /**
     * Publishes a JSON value over a WebSocket. Resolves with the event's id. If the connection breaks, the command is repeated with the same key.
     * Rejects if the value has no JSON, if the server refuses, if another transport than a WebSocket is open, if the connection is closed, or if 1024
     * commands have no answer.
     */
    publish(topic: string, data: unknown, options?: PublicationOptions): Promise<string>;
}
/** Connects like `connect` of `tower-push`, to topics of a hub. */
export declare function connect(url: string | URL, options: TopicOptions): TopicConnection;
export { PushError };
export type * from "./index.js";
