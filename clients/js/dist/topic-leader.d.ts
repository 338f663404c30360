import type { HubConnection } from "./hub-connection.js";
import type { CountMessage, LeaderMessage, Message, Publication, PublicationResult, ReportMessage, TopicsMessage } from "./shared-hub-messages.js";
import { type TopicOptions } from "./topics.js";
/** The tab that is the leader, as its `TopicLeader` sees it. */
export interface LeaderTab {
    /** What the tab itself has. */
    count(): CountMessage;
    /** Returns a term above all that the tab has heard. */
    newTerm(): string;
    /** Sends a message to the other tabs, and then handles it in this tab. */
    broadcast(message: LeaderMessage | ReportMessage): void;
    post(message: Message): void;
    /** Calls `onGone` when another tab is gone, and no more when the leader has resigned. */
    whenGone(tab: string, resigned: AbortSignal, onGone: () => void): void;
}
/**
 * The leader of the tabs that share a connection to topics: from the election of its tab until the tab resigns. The connection has the topics of all
 * tabs. The leader broadcasts everything that the connection reports: these reports are the leader's stream.
 */
export declare class TopicLeader {
    #private;
    /** Asks the other tabs for their positions, and then opens a connection that resumes at the oldest position. */
    constructor(url: URL, options: TopicOptions, tab: LeaderTab);
    get connection(): HubConnection | undefined;
    resign(): void;
    /** Sends where the stream is, and which topics it has. */
    announce(): void;
    handleCount(message: CountMessage): void;
    /** Handles that another tab has these topics. */
    handleTopics({ tab, topics, resumed }: Omit<TopicsMessage, "kind">): void;
    /** Handles that the server has refused a topic. */
    handleRefusal(topic: string): void;
    /**
     * Publishes for a tab. Calls `answer` with the result. Does not call it if the leader resigns before: the next leader gets the publication again.
     */
    publish(publication: Publication, answer: (result: PublicationResult) => void): void;
    /** Sets the topics of the connection to those of all tabs. The topics `resumed` continue after the cursor of a tab. */
    updateConnection(resumed: string[]): void;
}
