import { PushError } from "./error.js";
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
  end?: { finished?: boolean; retry?: number };
}

/** Reads an envelope. Throws if the text is not one. */
export function parseRecord(text: string): PushRecord {
  try {
    const record = JSON.parse(text);
    if (record && typeof record === "object" && !Array.isArray(record)) return record;
  } catch {}
  throw new PushError(`not an envelope: ${text.slice(0, 80)}`, "unsuitable");
}

/** Decodes base64. */
export function decodeBase64(text: string): Uint8Array {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    throw new PushError("not base64", "unsuitable");
  }
}

/** The default of `ConnectOptions.parse`. */
export function parseJsonOrText(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
