/**
 * The browser's `EventSource` as a transport.
 *
 * @module
 */
import type { End, TransportPlugin } from "./attempt.js";
import { Consequence } from "./error.js";
import { PushError } from "./index.js";
import { recordOf } from "./sse.js";

/**
 * Returns a transport over the browser's `EventSource`, which hears only the types that it is told, and sees no HTTP status, no heartbeat and no
 * id that comes alone. An event whose id is that of the event before has no `id`.
 *
 * ```ts
 * connect("/prices", { transports: [eventSource(["EUR", "USD"]), "long-poll"] });
 * ```
 */
export function eventSource(types: string[] = []): TransportPlugin {
  return {
    name: "event-source",
    async receive({ options, signal, url, cursor, onOpen, onRecord }) {
      const Source = options.EventSource ?? globalThis.EventSource;
      if (!Source) throw new PushError("no EventSource here", Consequence.Unsuitable);
      const address = new URL(url);
      if (cursor) address.searchParams.set("last_event_id", cursor);
      const source: EventSource = new Source(address.href, { withCredentials: options.credentials === "include" });
      // An EventSource repeats the last id with each event that has none.
      let lastId = cursor;
      try {
        return await new Promise<End>((resolve, reject) => {
          signal.addEventListener("abort", () => resolve({}));
          source.onopen = () => onOpen();
          // The connection comes back by itself, with its own backoff, and not as the EventSource would.
          source.onerror = () => reject(new PushError("the EventSource has failed", Consequence.Cut));
          const { gap = "gap", end = "end", finished = "finished" } = options.controlEvents ?? {};
          for (const type of new Set(["message", gap, end, finished, ...types])) {
            source.addEventListener(type, ({ data, lastEventId }: MessageEvent) => {
              const isNewId = lastEventId && lastEventId !== lastId;
              lastId = lastEventId;
              try {
                onRecord(recordOf({ event: type, data, ...(isNewId && { id: lastEventId }) }, options));
              } catch (error) {
                reject(error);
              }
            });
          }
        });
      } finally {
        source.close();
      }
    },
  };
}
