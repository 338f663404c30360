import { readFileSync } from "node:fs";

const text = readFileSync(new URL("../../../docs/clients.md", import.meta.url), "utf8");

/** Returns the first code in docs/clients.md after a line. */
export function codeOf(line) {
  const start = text.indexOf(`\n${line}\n`);
  if (start < 0) throw new Error(`docs/clients.md has no line ${line}`);
  return /```\w+\n([^]*?)```/.exec(text.slice(start))[1];
}
