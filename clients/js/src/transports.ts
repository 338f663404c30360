import type { Receive, TransportPlugin } from "./attempt.js";
import { receivePoll, receiveSse } from "./http.js";
import type { ConnectOptions } from "./types.js";
import { receiveWebSocket } from "./websocket.js";

const RECEIVERS: Record<string, Receive> = {
  websocket: receiveWebSocket,
  sse: receiveSse,
  "long-poll": receivePoll,
};

/** Returns the transports that a connection uses, the best first. Throws if there is none. */
export function transportsOf(options: ConnectOptions): TransportPlugin[] {
  const { body, headers, protocols, transports = body ? ["sse"] : ["websocket", "sse", "long-poll"] } = options;
  const canUseWebSocket = !body && (!headers || protocols || options.WebSocket);
  const usable = transports
    .map((transport) => (typeof transport === "string" ? { name: transport, receive: RECEIVERS[transport]! } : transport))
    .filter(({ name }) => name !== "websocket" || canUseWebSocket);
  if (!usable[0]) throw new TypeError("no usable transport");
  return usable;
}

/** Returns the transport that has worked for this origin, or remembers it, for as long as the tab is open. */
export function rememberedTransport({ origin }: URL, transport?: string): string | undefined {
  const key = `tower-push ${origin}`;
  try {
    if (transport) sessionStorage[key] = transport;
    return sessionStorage[key];
  } catch {}
  return undefined;
}
