import type { Receive } from "./attempt.js";
/** Receives Server-Sent Events over `fetch`. */
export declare const receiveSse: Receive;
/** Receives one batch of events. */
export declare const receivePoll: Receive;
