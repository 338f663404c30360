import type { Gap, PushEvent } from "./index.js";
import { type TopicOptions } from "./topics.js";
/** What `readTopics` reports. */
export interface SnapshotListener {
    onEvent(event: PushEvent): void;
    onGap(gap: Gap): void;
    /** The cursor has moved. It is valid for all topics that are read. */
    onCursor?(cursor: string): void;
}
/**
 * Reads the events that topics have now, after the cursor `since` of the options or from where a new client begins. Sends polls that do not wait,
 * until one has no event. Returns whether the topics were read to their end.
 */
export declare function readTopics(url: URL, options: TopicOptions, signal: AbortSignal, listener: SnapshotListener): Promise<boolean>;
