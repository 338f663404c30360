import type { Options } from "./attempt.js";
import { Consequence, PushError } from "./error.js";
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
export function createSseParser(
  onBlock: (block: SseBlock) => void,
  onRetry: (milliseconds: number) => void,
  options: Options,
): SseParser {
  let partialLine = "";
  let skipsLineFeed = false;
  let block: SseBlock = {};
  let length = 0;

  const checkLength = (line: string) => {
    if (length + line.length > options.maxEventLength) throw tooLong(options);
  };
  const dispatch = () => {
    const { id, data } = block;
    // An event without data is not dispatched, but its id counts.
    const complete = data != null ? block : id != null && { id };
    block = {};
    length = 0;
    if (complete) onBlock(complete);
  };
  const addField = (line: string) => {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") {
      length += value.length + 1;
      block.data = block.data == null ? value : `${block.data}\n${value}`;
    } else if (name === "event" || name === "event_id" || name === "topic" || (name === "id" && !value.includes("\0"))) block[name] = value;
    else if (name === "topics") block[name] = value.split("\t");
    else if (name === "retry" && /^\d+$/.test(value)) onRetry(+value);
  };
  return {
    isBetweenEvents: () => !partialLine && !Object.keys(block).length,
    push(chunk) {
      // CRLF may be cut in two.
      if (skipsLineFeed && chunk[0] === "\n") chunk = chunk.slice(1);
      else if (!chunk) return;
      skipsLineFeed = chunk.endsWith("\r");
      const lines = chunk.split(chunk.includes("\r") ? /\r\n?|\n/ : "\n");
      const rest = lines.pop()!;
      for (let line of lines) {
        line = partialLine + line;
        partialLine = "";
        checkLength(line);
        if (line) addField(line);
        else dispatch();
      }
      partialLine += rest;
      checkLength(partialLine);
    },
  };
}

export const tooLong = ({ maxEventLength }: Options) => new PushError(`an event is longer than ${maxEventLength}`, Consequence.Final);

/** Turns a block of an event stream into a record. An event whose name and data are those of a gap or an end is one. */
export function recordOf(block: SseBlock, { controlEvents }: ConnectOptions, isBase64?: boolean): PushRecord {
  const { id, event, data } = block;
  const { gap = "gap", end = "end", finished = "finished" } = controlEvents ?? {};
  try {
    const isGap = event === gap;
    if (isGap || event === end || event === finished) {
      const value = JSON.parse(data!);
      if (isGap ? value.reason : value.finished != null) return { id: id!, [isGap ? "gap" : "end"]: value };
    }
  } catch {}
  return isBase64 && data != null ? { ...block, data: undefined, data_base64: data } : block;
}
