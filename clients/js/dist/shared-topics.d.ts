/**
 * One connection to topics of a hub for all tabs of a browser. Each tab has topics of its own.
 *
 * ```ts
 * import { connect } from "tower-push/shared-topics";
 *
 * const push = connect("/events", { shared: user.id, topics: ["news"] });
 * push.subscribe("sport");
 * ```
 *
 * @module
 */
import { PushError } from "./index.js";
import { type TopicConnection, type TopicOptions } from "./topics.js";
/** The options of a shared connection to topics. All tabs under one name have the same options, but for `topics` and `since`. */
export interface SharedTopicOptions extends Omit<TopicOptions, "patterns"> {
    /** At least one topic. */
    topics: string[];
    /**
     * Names the identity under which the connection is made: the user, the tenant. Tabs with the same URL and the same name share a connection. A page
     * that a different user sees must have a different name.
     */
    shared: string;
    /** How long the tab that holds the connection may be frozen before another tab takes over, in milliseconds. Default: 5000. */
    lease?: number;
}
/**
 * Connects like `connect` of `tower-push/topics`, but the tabs under one name share one connection, which has the topics of all tabs. Each tab gets
 * the events of its own topics. A topic begins in each tab as for a new client, or after the cursor `since`. If another tab has the topic already,
 * the tab reads the first events by long-polls, which the server must answer. Without Web Locks and BroadcastChannel, each tab has its own
 * connection.
 *
 * A shared connection does not wait for a `for await` that has more than `maxBuffered` events to read: it gets a gap in place of the oldest. An event that is published with `echo: false` reaches no
 * tab under the name. The transport must name the topics: on SSE, in the field `topic`. An event without a topic reaches all tabs.
 */
export declare function connect(url: string | URL, options: SharedTopicOptions): TopicConnection;
export { PushError };
export type * from "./topics.js";
