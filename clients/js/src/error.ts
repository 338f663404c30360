/** What a failure means for the connection. Not part of the public API. */
export const enum Consequence {
  /** Do not come back. */
  Final,
  /** Come back over this transport, with backoff. */
  Retry,
  /** Come back over this transport if it has received something, and else over the next one. */
  Cut,
  /** This transport is of no use here: try the next one. */
  Unsuitable,
  /** Ask for new headers once, and come back. */
  Unauthorized,
}

/** Why a transport has failed. */
export class PushError extends Error {
  override name = "PushError";
  /** Whether the connection does not come back. */
  final = false;
  /** The transport that has failed. */
  declare transport: string | undefined;
  /** The HTTP status, if there was one. */
  declare status: number | undefined;
  /** The close code of the WebSocket, if there was one. */
  declare code: number | undefined;
  /** The beginning of the server's error body, at most 1000 characters. */
  declare body: string | undefined;
  /** The shortest time before the next attempt, in milliseconds, that the server has named. */
  declare retryAfter: number | undefined;
  /** @internal */
  declare consequence: Consequence;

  /** @internal */
  constructor(message: string, consequence: Consequence, fields?: Partial<PushError>) {
    super(message);
    Object.assign(this, { consequence, ...fields });
  }
}

/** Returns what an HTTP status means. `unsuitable` is what it means that the server does not offer the transport. */
export function statusConsequence(status: number, unsuitable = Consequence.Unsuitable): Consequence {
  if (status === 401) return Consequence.Unauthorized;
  if ([400, 405, 406, 415, 426, 501, 505].includes(status)) return unsuitable;
  return status >= 500 || [408, 409, 421, 425, 429].includes(status) ? Consequence.Retry : Consequence.Final;
}
