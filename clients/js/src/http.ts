import type { Attempt, Receive } from "./attempt.js";
import { Consequence, PushError, statusConsequence } from "./error.js";
import { createSseParser, recordOf, tooLong } from "./sse.js";

/** The wait time of a poll, in seconds. */
const POLL_WAIT = 25;

/** Sends a request for a response of the media type `accept`. Throws for every other response, but 204. */
async function request(attempt: Attempt, accept: string, url = attempt.url): Promise<Response> {
  const { body, credentials, fetch = globalThis.fetch, method = body ? "POST" : "GET" } = attempt.options;
  const headers = new Headers(attempt.headers);
  headers.set("accept", accept);
  // As UTF-8, like an EventSource. A header of `fetch` is a text of bytes.
  if (attempt.cursor) headers.set("last-event-id", unescape(encodeURIComponent(attempt.cursor)));
  const init: RequestInit = { headers, credentials: credentials!, signal: attempt.signal, cache: "no-store", method };
  if (body) init.body = typeof body === "function" ? body() : body;
  let response;
  try {
    response = await fetch(url, init);
  } catch (error) {
    throw new PushError(`the request failed: ${(error as Error).message}`, Consequence.Retry);
  }
  const { status } = response;
  const type = (response.headers.get("content-type") ?? "").toLowerCase();
  if (status === 204 || (status === 200 && type.startsWith(accept))) return response;
  let text = "";
  try {
    for await (const chunk of chunksOf(response)) {
      text += chunk;
      if (text.length > 1000) break;
    }
  } catch {}
  const [message, consequence] =
    status !== 200
      ? [`status ${status}`, statusConsequence(status)]
      : // A page of HTML is a login page, or the URL is wrong.
        [`the response is "${type}" and not ${accept}`, type.startsWith("text/html") ? Consequence.Unauthorized : Consequence.Unsuitable];
  throw new PushError(message, consequence, { status, body: text.slice(0, 1000), retryAfter: retryAfterOf(response) });
}

/** Reads `Retry-After`, in seconds or as a date. Returns milliseconds, or 0. */
function retryAfterOf({ headers }: Response): number {
  const value = headers.get("retry-after") ?? "";
  // The date "0" is in the past.
  return Math.max(0, +value * 1000 || Date.parse(value) - Date.now() || 0);
}

/** Decodes a body, chunk by chunk. Stops reading when the loop over it ends. */
async function* chunksOf({ body }: Response): AsyncGenerator<string> {
  const reader = body?.getReader();
  if (!reader) return;
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield decoder.decode(value, { stream: true });
    }
  } catch (error) {
    throw new PushError(`the response was cut: ${(error as Error).message}`, Consequence.Cut);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Receives Server-Sent Events over `fetch`. */
export const receiveSse: Receive = async (attempt) => {
  const response = await request(attempt, "text/event-stream");
  if (response.status === 204) return { finished: true };
  attempt.onOpen();
  const isBase64 = response.headers.get("stream-sse-data-encoding") === "base64";
  let isFirst = true;
  let hasEvent: boolean;
  const parser = createSseParser(
    (block) => {
      hasEvent ||= block.data != null;
      attempt.onRecord(recordOf(block, attempt.options, isBase64));
    },
    attempt.onRetry,
    attempt.options,
  );
  for await (const chunk of chunksOf(response)) {
    hasEvent = false;
    parser.push(chunk);
    attempt.onRecord({}, !isFirst && !hasEvent && parser.isBetweenEvents());
    isFirst = false;
    await attempt.whenReady();
    if (attempt.signal.aborted) break;
  }
  return {};
};

/** Receives one batch of events. */
export const receivePoll: Receive = async (attempt) => {
  const { isProbe, options } = attempt;
  const url = new URL(attempt.url);
  url.searchParams.set("transport", "long-poll");
  // The first poll is answered at once, so that the connection is known to work, and to have all topics.
  url.searchParams.set("timeout", `${isProbe ? 0 : POLL_WAIT}`);
  const startedAt = performance.now();
  const response = await request(attempt, "application/json", url);
  if (response.status === 204) return { finished: true };
  let text = "";
  for await (const chunk of chunksOf(response)) {
    text += chunk;
    if (text.length > options.maxEventLength) throw tooLong(options);
  }
  const hasTakenTime = isProbe || performance.now() - startedAt > 1000;
  let batch;
  try {
    batch = JSON.parse(text);
    if (!batch.every((record: unknown) => record && typeof record === "object")) throw 0;
  } catch {
    throw new PushError(`not a batch: ${text.slice(0, 80)}`, Consequence.Unsuitable);
  }
  attempt.onOpen();
  const retryAfter = retryAfterOf(response);
  attempt.onRetry(retryAfter);
  for (const record of batch) attempt.onRecord(record);
  attempt.onRecord({ id: response.headers.get("last-event-id") || undefined! });
  const { id, cursor = id, end } = batch.at(-1) ?? {};
  // A batch without anything new must have taken its time, for else it would be asked for again and again.
  return { again: !retryAfter && !end && (hasTakenTime || (batch[0] && cursor !== attempt.cursor)) };
};
