import type { ConnectOptions } from "./types.js";

/** How late a tick is if the machine has slept, in milliseconds. Browsers run the timers of a hidden page at least once a minute. */
const SLEEP = 90_000;

/** What a connection does when the page, the network or the machine changes. */
export interface EnvironmentListener {
  /** The signal of the options was aborted. */
  close(): void;
  /** The page is hidden, frozen or kept for the back button; or it is back. */
  suspend(isSuspended: boolean): void;
  /** The network is back, or the machine has slept: an open connection may be dead. */
  restart(): void;
  /** Some milliseconds have passed since the last tick. */
  tick(elapsed: number): void;
}

/** Watches the environment, with a tick each `interval` milliseconds. Returns a function that ends the watch. */
export function watchEnvironment(listener: EnvironmentListener, interval: number, { pauseWhenHidden, signal }: ConnectOptions): () => void {
  const stopped = new AbortController();
  const { document } = globalThis;
  const listen = (target: any, type: string, react: (event: any) => void) =>
    target?.addEventListener?.(type, react, { signal: stopped.signal });
  listen(signal, "abort", () => listener.close());
  listen(globalThis, "online", () => listener.restart());
  listen(globalThis, "pagehide", ({ persisted }) => persisted && listener.suspend(true));
  listen(globalThis, "pageshow", ({ persisted }) => persisted && listener.suspend(false));
  listen(document, "freeze", () => listener.suspend(true));
  listen(document, "resume", () => listener.suspend(false));
  if (pauseWhenHidden) {
    const onVisibility = () => listener.suspend(document?.hidden);
    listen(document, "visibilitychange", onVisibility);
    onVisibility();
  }
  let last = Date.now();
  const timer = setInterval(() => {
    const elapsed = Date.now() - last;
    last += elapsed;
    // A clock that was set forward looks like a sleep, which costs a reconnection and no event. One that was set back is ignored.
    if (elapsed > SLEEP) listener.restart();
    else listener.tick(Math.max(0, elapsed));
  }, interval);
  return () => {
    stopped.abort();
    clearInterval(timer);
  };
}
