import type { Gap, PushConnection, PushError, PushEvent, State } from "./index.js";

/** The fields of an error that a tab can send to another tab. */
export interface ErrorFields {
  message: string;
  final: boolean;
  status: number | undefined;
  code: number | undefined;
}

export const errorFields = ({ message, final, status, code }: PushError): ErrorFields => ({ message, final, status, code });

/** What a connection reports, as its tab sends it to the other tabs. */
export type Report =
  | ["event", PushEvent]
  | ["gap", Gap]
  | ["cursor", string | undefined]
  | ["state", State]
  | ["finished", undefined]
  | ["error", ErrorFields];

/**
 * Calls `onReport` with everything that a connection reports, until the connection is closed. An event or a gap that moves the cursor is one report,
 * and no report of the cursor precedes it: so no tab has the cursor of an event that it has not got.
 */
export function listenToReports(connection: PushConnection, onReport: (...report: Report) => void): void {
  let isCursorReported = true;
  const report = (...report: Report) => {
    isCursorReported = true;
    onReport(...report);
  };
  connection.on("event", (event) => report("event", event));
  connection.on("gap", (gap) => report("gap", gap));
  connection.on("cursor", () => {
    isCursorReported = false;
    // The event that has moved the cursor follows before any microtask runs.
    queueMicrotask(() => isCursorReported || report("cursor", connection.cursor));
  });
  connection.on("state", (state) => state !== "closed" && report("state", state));
  connection.on("finished", () => report("finished", undefined));
  connection.on("error", (error) => report("error", errorFields(error)));
}
