import type { TransportPlugin } from "./attempt.js";
import type { PushError } from "./error.js";
/**
 * A way to receive events.
 *
 * - `websocket`: a WebSocket, with envelopes (`json.tower-push`) unless `protocols` says otherwise. The only transport that can `send`.
 * - `sse`: Server-Sent Events over `fetch`, which can set headers and sees heartbeats and HTTP statuses.
 * - `long-poll`: one `fetch` for each batch of events. Works through every proxy.
 * - `eventSource()` of `tower-push/event-source`: Server-Sent Events over the browser's `EventSource`.
 */
export type Transport = "websocket" | "sse" | "long-poll" | TransportPlugin;
/**
 * What a connection is doing.
 *
 * - `connecting`: a transport is being opened.
 * - `open`: a transport is open.
 * - `waiting`: no transport is open. The connection comes back by itself.
 * - `paused`: the page is hidden or frozen, or `for await` has not read the buffered events. The connection comes back by itself.
 * - `closed`: the connection does not come back: `close` was called, the source has finished, or an error was final.
 */
export type State = "connecting" | "open" | "waiting" | "paused" | "closed";
/** An event of the source. */
export interface PushEvent<T = any> {
    /** The event's type. `"message"` for an event without a type. */
    type: string;
    /** The payload: what `parse` made of a text, or a `Uint8Array` for bytes. */
    data: T;
    /** The event's id, if it has one. Opaque: ids cannot be compared. */
    id?: string | undefined;
    /** The event's topic, if the source has topics. */
    topic?: string | undefined;
    /** All topics of the event that the connection has, with `topic` first. Absent if there is at most one. */
    topics?: string[] | undefined;
    /** Absent: tells an event from a gap in a loop over a connection. */
    gap?: undefined;
}
/** Events that the client will never receive. A page that gets a gap should load its data again. */
export interface Gap {
    /** `expired`, `lagged`, `epoch` or `unsupported`; or `unknown` if the connection was lost and the source gives no ids to resume from. */
    reason: string;
    /** The cursor that the client has sent, if any. */
    requested?: string | null;
    /** The cursor after which the stream continues, if it is known. */
    resumed?: string | null;
    /** The number of missing events, if it is known. */
    missed?: number | null;
    /** The topic whose events are missing, if the source has topics. */
    topic?: string;
}
/** A gap, as a loop over a connection yields it. */
export interface PushGap {
    type: "gap";
    gap: Gap;
    id?: string | undefined;
}
/** The names that `on` reserves, and what their listeners get. Every other name is an event type. */
export interface Listeners {
    /** Every event, whatever its type. */
    event: (event: PushEvent) => void;
    gap: (gap: Gap) => void;
    /** The cursor has moved. A page that keeps it can begin there later, with `since`. */
    cursor: (cursor: string) => void;
    state: (state: State) => void;
    /** The source has finished: no event follows, and the connection is closed. */
    finished: () => void;
    /** Why a transport has failed. `error.final` says whether the connection comes back. Without a listener and a loop, the console shows a final error. */
    error: (error: PushError) => void;
}
/** Headers, or a function that returns them, which is called before each request. */
export type HeadersOption = HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
/** The options of `connect`. */
export interface ConnectOptions {
    /** The transports to use, the best first. Default: `websocket`, `sse`, `long-poll`; with a `body`, `sse`. */
    transports?: Transport[];
    /** The cursor to begin after, for example the cursor of a page that the server has rendered. Default, and `"now"`: where the source begins. */
    since?: string;
    /**
     * Headers of each request. A browser cannot set headers of a WebSocket: with this option, `connect` uses a WebSocket only if `protocols` or
     * `WebSocket` is set.
     */
    headers?: HeadersOption;
    /** Closes the connection when it is aborted. */
    signal?: AbortSignal;
    /** The body of a `POST`, or a function that makes it for each request. Only `sse` sends it. */
    body?: BodyInit | (() => BodyInit);
    /** With `body`: repeats the request with the cursor if the response was cut. Default: `false`, because a `POST` may not be repeated. */
    resume?: boolean;
    /** The method of the requests. Default: `GET`, or `POST` with a body. */
    method?: string;
    /** As in `fetch`. Default: `same-origin`. */
    credentials?: RequestCredentials;
    /**
     * The subprotocols of a WebSocket, or a function that returns them. Default: `["json.tower-push"]`. If the server selects another one, or
     * none, each message is the payload of an event.
     */
    protocols?: string[] | (() => string[] | Promise<string[]>);
    /** Makes the payload from a text. Default: the JSON value if the text is JSON, else the text. `String` keeps every text as it is. */
    parse?: (text: string) => unknown;
    /** The names of the SSE events that announce a gap, an end and the end of the source. Default: `gap`, `end`, `finished`. */
    controlEvents?: {
        gap?: string;
        end?: string;
        finished?: string;
    };
    /**
     * The time between two heartbeats of the server, in milliseconds. The connection is opened anew after 2.5 heartbeats of silence. Default:
     * learned from the first heartbeat of each stream, and at least 15 s. Without a heartbeat, a stream may be silent for ever.
     */
    heartbeat?: number;
    /** How long a transport may take to open and to send the first byte, in milliseconds, before the next one is tried. Default: 5000. */
    openTimeout?: number;
    /** The longest first delay before the connection comes back, in milliseconds. Doubles with each failure. Default: 500. */
    minDelay?: number;
    /** The longest delay that is not the server's, in milliseconds. Default: 30 000. */
    maxDelay?: number;
    /** How long a worse transport is used before the best one is tried again, in milliseconds. Doubles with each try. Default: 300 000. */
    upgradeAfter?: number;
    /** The length of the longest event, in characters or bytes. Default: 16 Mi. A longer event is a final error. */
    maxEventLength?: number;
    /**
     * How many events wait for a slow `for await` before the connection pauses. Default: 1024. A connection that tabs share does not pause: the loop
     * gets a gap with the reason `lagged` in place of the oldest events.
     */
    maxBuffered?: number;
    /** Disconnects while the page is hidden. Default: `false`. */
    pauseWhenHidden?: boolean;
    /** Replaces the global `fetch`. */
    fetch?: typeof fetch;
    /** Replaces the global `WebSocket`. Gets `{ headers }` as third argument, as the npm package `ws` reads it. */
    WebSocket?: new (url: string, protocols?: string[], options?: any) => any;
    /** Replaces the global `EventSource`. */
    EventSource?: new (url: string, options?: any) => any;
}
/**
 * A connection to a source. `for await` yields the events and gaps that arrive after the loop has begun, ends when the source has finished, and throws
 * a final error. A loop that begins in the task that has called `connect` misses nothing.
 */
export interface PushConnection extends AsyncIterable<PushEvent | PushGap> {
    /** The cursor: the id of the last event. `undefined` before the first id. */
    readonly cursor: string | undefined;
    readonly state: State;
    /** The name of the transport that is open or being opened. */
    readonly transport: string | undefined;
    /** Adds a listener. Returns a function that removes it. */
    on<K extends keyof Listeners>(name: K, listener: Listeners[K]): () => void;
    on<T = any>(type: string, listener: (event: PushEvent<T>) => void): () => void;
    /**
     * Sends a message over an open WebSocket: a string, bytes, or a value as JSON. Returns `false` if no WebSocket is open: then nothing was
     * sent. `true` does not mean that the server has received the message: let it acknowledge what must not be lost.
     */
    send(message: unknown): boolean;
    /** Closes the connection for good. */
    close(): void;
}
