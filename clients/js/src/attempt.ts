import type { PushRecord } from "./record.js";
import type { ConnectOptions } from "./types.js";

/** The defaults of the options that are numbers. */
export const DEFAULTS = {
  openTimeout: 5000,
  minDelay: 500,
  maxDelay: 30_000,
  upgradeAfter: 300_000,
  maxEventLength: 2 ** 24,
  maxBuffered: 1024,
};

/** The options of a connection, with their defaults. */
export type Options = ConnectOptions & typeof DEFAULTS;

/** Sends a message over an open WebSocket. */
export type SendMessage = (message: string | ArrayBufferView | ArrayBuffer) => void;

/** One attempt to receive over a transport: what the transport needs, and what it reports. */
export interface Attempt {
  options: Options;
  url: URL;
  cursor: string | undefined;
  headers: HeadersInit | undefined;
  /** Whether the last attempt has not worked, or was over another transport. */
  isProbe: boolean;
  /** Aborts the attempt. The reports that follow are ignored. */
  signal: AbortSignal;
  /** The transport is open. */
  onOpen(send?: SendMessage): void;
  /** Something has arrived: a record, or an empty one. `isHeartbeat` says that the server keeps the connection alive with it. */
  onRecord(record: PushRecord, isHeartbeat?: boolean): void;
  /** The server has named the shortest time before the next attempt. */
  onRetry(milliseconds: number): void;
  /** Resolves when the receiver has room for more events. */
  whenReady(): Promise<void> | undefined;
}

/** How a stream has ended without an error. */
export interface End {
  /** The source has finished. */
  finished?: boolean;
  /** A poll was answered: send the next one. */
  again?: boolean;
}

/** Receives until the stream ends. Throws a `PushError` for everything but a clean end. */
export type Receive = (attempt: Attempt) => Promise<End>;

/** A transport that is not part of the core. */
export interface TransportPlugin {
  name: string;
  /** @internal */
  receive: Receive;
}
