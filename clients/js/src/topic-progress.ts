import { BEGUN_AFTER } from "./connection-output.js";
import type { ReportMessage } from "./shared-hub-messages.js";
import type { Position } from "./tab-group.js";

/** How far a tab is with one of its topics. */
export interface TopicProgress {
  /**
   * Waits for a stream of the leader that has the topic; reads older events than the stream has; or follows the stream. A topic that begins in the
   * stream is `begun` until the cursor is valid for it: if there is another leader before, the topic begins again.
   */
  step: "wanted" | "loading" | "begun" | "followed";
  /** The cursor after which the tab has not got the topic's events. Without one, the topic begins as for a new client. */
  since: string | undefined;
  /**
   * Since when the topic is in an open stream, as of `performance.now`. `Infinity` before the stream is open. `-Infinity` after an event that moves
   * no cursor, or if the stream was open for so long that a cursor would have come.
   */
  begunAt: number;
  load: TopicLoad | undefined;
  /** The last event, and where it was in the stream of the leader: at this position, or anywhere before it if it was read from the server. */
  last: { id: string; position: Position; isRead?: boolean } | undefined;
  /** Events that the stream repeats. */
  repetition: Repetition | undefined;
}

/** Events of a topic that the tab drops, because it has got them before. */
export interface Repetition {
  /** The id of the last event that the stream will repeat. */
  upTo: string;
  /** The ids of the events that the stream may repeat. Without them, all events up to the last one are dropped. */
  ids?: Set<string> | undefined;
  /** The number of events that were dropped. */
  dropped: number;
}

export const repetitionUpTo = (id: string | undefined, ids?: Set<string>): Repetition | undefined =>
  id == null ? undefined : { upTo: id, ids, dropped: 0 };

/** Topics that a tab reads from the server while the leader's stream goes on. */
export interface TopicLoad {
  aborted: AbortController;
  /** Where the stream was when the load began. */
  position: Position;
  cursor: string | undefined;
  /** What the stream has after `position`. */
  held: ReportMessage[];
}

/** Returns whether a topic without a cursor has been in the stream for so long that a cursor would have come. */
export const hasBegunBefore = ({ begunAt }: TopicProgress) => performance.now() - begunAt > BEGUN_AFTER;

export const isFollowed = ({ step }: TopicProgress) => step === "begun" || step === "followed";
