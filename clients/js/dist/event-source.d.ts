/**
 * The browser's `EventSource` as a transport.
 *
 * @module
 */
import type { TransportPlugin } from "./attempt.js";
/**
 * Returns a transport over the browser's `EventSource`, which hears only the types that it is told, and sees no HTTP status, no heartbeat and no
 * id that comes alone. An event whose id is that of the event before has no `id`.
 *
 * ```ts
 * connect("/prices", { transports: [eventSource(["EUR", "USD"]), "long-poll"] });
 * ```
 */
export declare function eventSource(types?: string[]): TransportPlugin;
