import type { ConnectOptions, Gap } from "./types.js";
/** An envelope as it arrives: an event, a cursor, a gap or an end. */
export interface PushRecord {
    id?: string;
    /** The event's own id on SSE, if `id` is another cursor. Empty if the event has no id. */
    event_id?: string;
    /** The cursor to come back with, if it is not the id. */
    cursor?: string;
    event?: string;
    topic?: string;
    topics?: string[];
    data?: unknown;
    data_base64?: string;
    gap?: Gap;
    end?: {
        finished?: boolean;
        retry?: number;
    };
}
/** Reads an envelope. Throws if the text is not one. */
export declare function parseRecord(text: string): PushRecord;
/** Returns the payload of an event, as the option `parse` makes it. */
export declare function payloadOf({ data, data_base64 }: PushRecord, { parse }: ConnectOptions): unknown;
