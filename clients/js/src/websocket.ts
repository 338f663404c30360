import type { End, Receive } from "./attempt.js";
import { Consequence, PushError, statusConsequence } from "./error.js";
import { parseRecord } from "./record.js";
import { tooLong } from "./sse.js";
import type { ConnectOptions } from "./types.js";

/** The subprotocol whose messages are envelopes. */
const ENVELOPES = "json.tower-push";

/** Opens a WebSocket, and receives its messages. */
export const receiveWebSocket: Receive = async ({ options, signal, url, cursor, headers, onOpen, onRecord }) => {
  const Socket = options.WebSocket ?? (globalThis as ConnectOptions).WebSocket;
  if (!Socket) throw new PushError("no WebSocket here", Consequence.Unsuitable);
  let { protocols = [ENVELOPES] } = options;
  if (typeof protocols === "function") protocols = await protocols();
  const address = new URL(url);
  address.protocol = address.protocol.replace("http", "ws");
  if (cursor) address.searchParams.set("last_event_id", cursor);
  if (signal.aborted) return {};
  // Browsers ignore the third argument. In Node.js, the first `Headers` takes milliseconds.
  const socket = new Socket(address.href, protocols, { headers: headers && Object.fromEntries(new Headers(headers)) });
  socket.binaryType = "arraybuffer";
  /** `undefined` until the WebSocket is open. A getter of the socket costs time for each message. */
  let protocol: string | undefined;
  try {
    return await new Promise<End>((resolve, reject) => {
      signal.addEventListener("abort", () => resolve({}));
      socket.onopen = () => {
        protocol = socket.protocol;
        onOpen((message) => socket.send(message));
      };
      socket.onmessage = ({ data }: MessageEvent) => {
        try {
          if ((data.length ?? data.byteLength) > options.maxEventLength) throw tooLong(options);
          if (protocol === ENVELOPES) onRecord(parseRecord(data));
          else onRecord({ data: typeof data === "string" ? data : new Uint8Array(data) });
        } catch (error) {
          reject(error);
        }
      };
      socket.onerror = () => {};
      socket.onclose = ({ code, reason }: CloseEvent) => {
        if (code === 1000) resolve({ finished: true });
        else reject(closeError(code, reason, protocol != null));
      };
    });
  } finally {
    socket.onclose = socket.onmessage = null;
    // In a browser, a close before the WebSocket is open is an error in the console. Only `ws` has `terminate`.
    socket.onopen = () => socket.close();
    socket.readyState ? socket.close() : socket.terminate?.();
  }
};

function closeError(code: number, reason: string, wasOpen: boolean): PushError {
  const error = new PushError(`WebSocket closed: ${code} ${reason}`, code === 1006 || !wasOpen ? Consequence.Cut : Consequence.Retry, { code });
  try {
    error.retryAfter = JSON.parse(reason).retry;
  } catch {}
  // 1002, 1003, and 1007 to 1010 say that this client, or what it has sent, is wrong.
  if ((code > 1001 && code < 1004) || (code > 1006 && code < 1011) || (code > 3499 && code < 4000)) error.consequence = Consequence.Final;
  // A server that refuses an open WebSocket closes it with 4000 and the HTTP status. It does offer WebSockets.
  if (code > 4399 && code < 4600) error.consequence = statusConsequence((error.status = code - 4000), Consequence.Final);
  return error;
}
