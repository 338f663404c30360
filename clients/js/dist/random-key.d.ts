/** Returns an idempotency key that nobody else uses. */
export declare function randomKey(): string;
