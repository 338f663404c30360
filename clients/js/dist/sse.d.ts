import type { Options } from "./attempt.js";
import { PushError } from "./error.js";
import type { PushRecord } from "./record.js";
import type { ConnectOptions } from "./types.js";
/** A block of an event stream: an event, or an id alone, which has no `data`. */
export interface SseBlock extends Omit<PushRecord, "data"> {
    data?: string;
}
/** A parser of an event stream. */
export interface SseParser {
    push(chunk: string): void;
    /** Returns whether the text so far ends between two events: no line and no event is incomplete. */
    isBetweenEvents(): boolean;
}
/**
 * Returns a parser that reads an event stream as the HTML standard says (§9.2.6). The text must have no byte order mark: `TextDecoder` removes it.
 *
 * Calls `onBlock` with each event and each lone id, and `onRetry` with each `retry` field. Throws if an event is longer than the options allow.
 */
export declare function createSseParser(onBlock: (block: SseBlock) => void, onRetry: (milliseconds: number) => void, options: Options): SseParser;
export declare const tooLong: ({ maxEventLength }: Options) => PushError;
/** Turns a block of an event stream into a record. An event whose name and data are those of a gap or an end is one. */
export declare function recordOf(block: SseBlock, { controlEvents }: ConnectOptions, isBase64?: boolean): PushRecord;
