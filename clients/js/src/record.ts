import { Consequence, PushError } from "./error.js";
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
  end?: { finished?: boolean; retry?: number };
}

/** Reads an envelope. Throws if the text is not one. */
export function parseRecord(text: string): PushRecord {
  try {
    const record = JSON.parse(text);
    if (record && typeof record === "object" && !Array.isArray(record)) return record;
  } catch {}
  throw new PushError(`not an envelope: ${text.slice(0, 80)}`, Consequence.Unsuitable);
}

/** Returns the payload of an event, as the option `parse` makes it. */
export function payloadOf({ data, data_base64 }: PushRecord, { parse }: ConnectOptions): unknown {
  if (data_base64 != null) return decodeBase64(data_base64);
  const isText = typeof data === "string";
  if (data instanceof Uint8Array || !(isText || parse)) return data;
  try {
    return (parse ?? JSON.parse)(isText ? data : JSON.stringify(data));
  } catch (error) {
    if (parse) throw new PushError(`parse failed: ${error}`, Consequence.Final);
    // A text that is not JSON.
    return data;
  }
}

function decodeBase64(text: string): Uint8Array {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    throw new PushError("not base64", Consequence.Unsuitable);
  }
}
