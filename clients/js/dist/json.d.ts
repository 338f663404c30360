/** Returns a copy of a value as its JSON has it, which any tab and any connection can send. Throws if the value has no JSON. */
export declare const plainJson: (value: unknown) => unknown;
/** Returns a message as a WebSocket sends it: texts and bytes as they are, and all else as JSON. So another tab can send the message, too. */
export declare const sendable: (message: unknown) => unknown;
