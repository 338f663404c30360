import type { ConnectionOutput } from "./connection-output.js";
import type { State } from "./index.js";
import type { LeaderMessage, ReportMessage } from "./shared-hub-messages.js";
import { type Position } from "./tab-group.js";
import type { TopicOptions } from "./topics.js";
/**
 * Follows the stream of the leader for the topics of one tab, and passes on their events.
 *
 * Invariants:
 * - The tab handles the reports of the highest term that it knows, in their order and without a hole. It passes on the events of the topics that it
 *   follows.
 * - The tab's cursor is the cursor of the leader's connection at the tab's position. If the tab misses events, or reads a topic from the server, the
 *   cursor stays before the missing events. So a page can begin after the cursor later, with the topics of which it has got events.
 * - The cursor of the leader's connection goes back when a topic begins in its stream with old events. So the stream may have passed events of the
 *   other topics that are after this cursor, and it does not repeat them.
 *
 * A tab misses events if its reports have a hole, or if it begins to follow a topic. The tab reads the missing events from the server. It also reads
 * the events after the cursor at which the leader's stream was. Events that both reads have will come in the leader's stream, too, and the tab drops
 * them there.
 */
export declare class TopicFollower {
    #private;
    constructor(url: URL, options: TopicOptions, output: ConnectionOutput);
    get topics(): string[];
    /** Where the tab is in the stream of the leader. `undefined` if the tab has not heard of a leader. */
    get position(): Position | undefined;
    /** The term of the leader that the tab follows. */
    get term(): string | undefined;
    /** The topics that the tab continues after a cursor. Its other topics begin as for a new client. */
    get resumedTopics(): string[];
    /** Whether the leader's stream lacks a topic of the tab. */
    get lacksTopic(): boolean;
    /** Whether the tab has all events of its topics up to `position`. Topics that begin as for a new client do not count. */
    get isComplete(): boolean;
    /** The cursor after which the topics continue that the tab follows. While the tab reads a topic, the cursor of the output is older. */
    get cursor(): string | undefined;
    has(topic: string): boolean;
    /** Adds topics, which begin as for a new client. Call `begin` when the leader knows them. */
    add(topics: Set<string>): void;
    delete(topic: string): boolean;
    /** Handles what the leader says about its stream, at a position that is not before the tab's. */
    handleLeader({ position, from, cursor, topics, begun }: LeaderMessage): void;
    /** Handles what the leader's connection reports, at a position after the tab's. */
    handleReport(message: ReportMessage): void;
    /** Handles that the tab leaves the group: its topics continue after the cursor when it is back. */
    leave(): void;
    /** Leaves a stream of which the tab misses events, because the tab is to be the leader. */
    loseUnlessComplete(): void;
    /** Handles that the leader's connection gets this state. A topic begins only while the connection is open. */
    handleState(state: State): void;
    /** Begins to follow, or to load, the waiting topics that the leader's stream has. */
    begin(): void;
}
