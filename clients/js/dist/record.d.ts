import type { Gap } from "./types.js";
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
/** Decodes base64. */
export declare function decodeBase64(text: string): Uint8Array;
/** The default of `ConnectOptions.parse`. */
export declare function parseJsonOrText(text: string): unknown;
