/**
 * A client for server push, by tower-push and by others: one cursor over all transports.
 *
 * ```ts
 * import { connect } from "tower-push";
 *
 * const push = connect("/prices");
 * push.on("EUR", ({ data }) => show(data));
 * push.on("gap", reload);
 * ```
 *
 * @module
 */
import { Connection } from "./connection.js";
import type { ConnectOptions, PushConnection } from "./types.js";

export { PushError } from "./error.js";
export type {
  ConnectOptions,
  Gap,
  HeadersOption,
  Listeners,
  PushConnection,
  PushEvent,
  PushGap,
  State,
  Transport,
} from "./types.js";

/** Connects to a source, and comes back after each failure until the source has finished or an error is final. */
export function connect(url: string | URL, options: ConnectOptions = {}): PushConnection {
  return new Connection(url, options);
}
