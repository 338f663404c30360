import type { ConnectOptions, PushConnection } from "./types.js";
export { PushError } from "./error.js";
export type { ConnectOptions, Gap, HeadersOption, Listeners, PushConnection, PushEvent, PushGap, State, Transport, } from "./types.js";
/** Connects to a source, and comes back after each failure until the source has finished or an error is final. */
export declare function connect(url: string | URL, options?: ConnectOptions): PushConnection;
