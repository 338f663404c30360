import type { ConnectOptions } from "./types.js";
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
export declare function watchEnvironment(listener: EnvironmentListener, interval: number, { pauseWhenHidden, signal }: ConnectOptions): () => void;
