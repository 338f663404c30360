/** Returns a copy of a value as its JSON has it, which any tab and any connection can send. Throws if the value has no JSON. */
export const plainJson = (value: unknown): unknown => JSON.parse(JSON.stringify(value ?? null));

/** Returns a message as a WebSocket sends it: texts and bytes as they are, and all else as JSON. So another tab can send the message, too. */
export const sendable = (message: unknown): unknown =>
  typeof message === "string" || (message as ArrayBuffer)?.byteLength != null ? message : JSON.stringify(message);
