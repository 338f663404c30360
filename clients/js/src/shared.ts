/**
 * One connection for all tabs of a browser.
 *
 * ```ts
 * import { connect } from "tower-push/shared";
 *
 * const push = connect("/notifications", { shared: user.id });
 * ```
 *
 * @module
 */
import { connect as connectAlone, PushError, type ConnectOptions, type PushConnection } from "./index.js";
import { SharedConnection } from "./shared-connection.js";

/** The options of a shared connection. */
export interface SharedOptions extends ConnectOptions {
  /**
   * Names the identity under which the connection is made: the user, the tenant. Tabs with the same URL and the same name share a connection, and so
   * get what the others may get. A page that a different user sees must have a different name.
   */
  shared: string;
  /** How long the tab that holds the connection may be frozen before another tab takes over, in milliseconds. Default: 5000. */
  lease?: number;
}

/**
 * Connects like `connect` of `tower-push`, but the tabs under one name share one connection. A tab that is opened later begins at the position of the
 * others, unless it has a cursor, `since`. Without Web Locks and BroadcastChannel, each tab has its own connection. A shared connection does not wait
 * for a `for await` that has more than `maxBuffered` events to read: it gets a gap in place of the oldest.
 */
export function connect(url: string | URL, options: SharedOptions): PushConnection {
  const { shared, lease = 5000, ...rest } = options;
  if (!globalThis.navigator?.locks || !globalThis.BroadcastChannel) return connectAlone(url, rest);
  return new SharedConnection(new URL(url, globalThis.location?.href), shared, lease, rest);
}

export { PushError };
export type * from "./index.js";
