import type { PushEvent } from "./index.js";
export declare const topicsOf: ({ topic, topics }: PushEvent) => string[];
/** The ids of the last events, each with a topic: an event of several topics may come again for one of them. */
export declare class RecentEvents {
    #private;
    /** Remembers an event. Returns whether the event is not among the last ones. An event without an id is always new. */
    add(id: string | undefined, topic: string | undefined): boolean;
    /** Forgets the events of topics that begin anew, and so may repeat events. */
    forget(topics: Set<string>): void;
}
