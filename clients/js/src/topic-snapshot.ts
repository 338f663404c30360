import type { Gap, PushEvent } from "./index.js";
import { connect, type TopicOptions } from "./topics.js";

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
export function readTopics(url: URL, options: TopicOptions, signal: AbortSignal, listener: SnapshotListener): Promise<boolean> {
  return new Promise((resolve) => {
    const { fetch = globalThis.fetch } = options;
    let count = 0;
    /** The number of items before the current poll. */
    let countBefore = -1;
    const end = (isComplete: boolean) => {
      resolve(isComplete);
      connection.close();
    };
    const poll: typeof fetch = (address, init) => {
      if (count === countBefore) {
        end(true);
        return new Promise(() => {});
      }
      countBefore = count;
      const url = new URL(String(address));
      url.searchParams.set("timeout", "0");
      return fetch(url, init);
    };
    const connection = connect(url, { ...options, transports: ["long-poll"], fetch: poll, signal });
    connection.on("event", (event) => {
      count++;
      listener.onEvent(event);
    });
    connection.on("gap", (gap) => {
      count++;
      listener.onGap(gap);
    });
    connection.on("cursor", (cursor) => listener.onCursor?.(cursor));
    connection.on("error", ({ final }) => {
      // The poll has failed, so the next one may have events.
      countBefore = -1;
      if (final) end(false);
    });
    connection.on("finished", () => end(true));
    connection.on("state", (state) => {
      // A poll without events that was answered at once is not repeated at once.
      if (state === "waiting" && count === countBefore) end(true);
      if (state === "closed") resolve(false);
    });
  });
}
