/** What a failure means for the connection. Not part of the public API. */
export declare const enum Consequence {
    /** Do not come back. */
    Final = 0,
    /** Come back over this transport, with backoff. */
    Retry = 1,
    /** Come back over this transport if it has received something, and else over the next one. */
    Cut = 2,
    /** This transport is of no use here: try the next one. */
    Unsuitable = 3,
    /** Ask for new headers once, and come back. */
    Unauthorized = 4
}
/** Why a transport has failed. */
export declare class PushError extends Error {
    name: string;
    /** Whether the connection does not come back. */
    final: boolean;
    /** The transport that has failed. */
    transport: string | undefined;
    /** The HTTP status, if there was one. */
    status: number | undefined;
    /** The close code of the WebSocket, if there was one. */
    code: number | undefined;
    /** The beginning of the server's error body, at most 1000 characters. */
    body: string | undefined;
    /** The shortest time before the next attempt, in milliseconds, that the server has named. */
    retryAfter: number | undefined;
    /** @internal */
    consequence: Consequence;
    /** @internal */
    constructor(message: string, consequence: Consequence, fields?: Partial<PushError>);
}
/** Returns what an HTTP status means. `unsuitable` is what it means that the server does not offer the transport. */
export declare function statusConsequence(status: number, unsuitable?: Consequence): Consequence;
