import type { PushEvent, State } from "./index.js";
import type { ErrorFields, Report } from "./reports.js";
import type { Position } from "./tab-group.js";
import type { PublicationOptions } from "./topics.js";
/** What the leader's connection to a hub reports. */
export type HubReport = Report | ["refused", PushEvent];
export interface LeaderMessage {
    kind: "leader";
    position: Position;
    /** The position from which the leader's stream continues, if it continues that of an earlier leader. */
    from: Position | undefined;
    cursor: string | undefined;
    state: State;
    /** The topics of the stream. */
    topics: string[];
    /** The topics that begin in the stream after `position`, as for a new client, or have begun while the cursor is not yet valid for them. */
    begun: string[];
}
export interface ReportMessage {
    kind: "report";
    position: Position;
    /** The cursor of the leader's connection after the report. */
    cursor: string | undefined;
    /** The topics for which `cursor` is not yet valid. Absent if there is none. */
    begun: string[] | undefined;
    report: HubReport;
}
/** What a tab has: its topics, and the cursor at `position`. No position if the tab misses events. */
export interface CountMessage {
    kind: "count";
    tab: string;
    topics: string[];
    /** The topics that go on after a cursor of the tab, and so must not begin anew in the stream. */
    resumed: string[];
    position: Position | undefined;
    cursor: string | undefined;
}
/** The topics of a tab have changed, or there is a new leader. */
export interface TopicsMessage {
    kind: "topics";
    tab: string;
    topics: string[];
    resumed: string[];
}
/** A message between tabs. */
export type Message = LeaderMessage | ReportMessage | CountMessage | TopicsMessage
/** Is a leader there? */
 | {
    kind: "ping";
}
/** A new leader asks what the others have. */
 | {
    kind: "census";
} | {
    kind: "send";
    message: unknown;
} | {
    kind: "publish";
    tab: string;
    ref: number;
    publication: Publication;
} | {
    kind: "published";
    tab: string;
    ref: number;
    result: PublicationResult;
};
export type Publication = [topic: string, data: unknown, options: PublicationOptions];
/** The id of the published event, or why it was not published. */
export type PublicationResult = {
    id: string;
} | {
    error: ErrorFields;
};
