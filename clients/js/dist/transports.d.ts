import type { TransportPlugin } from "./attempt.js";
import type { ConnectOptions } from "./types.js";
/** Returns the transports that a connection uses, the best first. Throws if there is none. */
export declare function transportsOf(options: ConnectOptions): TransportPlugin[];
/** Returns the transport that has worked for this origin, or remembers it, for as long as the tab is open. */
export declare function rememberedTransport({ origin }: URL, transport?: string): string | undefined;
