import type { Receive } from "./attempt.js";
/** Opens a WebSocket, and receives its messages. */
export declare const receiveWebSocket: Receive;
