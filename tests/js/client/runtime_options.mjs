/** The options that `connect` needs in this runtime: Node.js before 22 has no `WebSocket`. */
export async function runtimeOptions() {
  if (globalThis.WebSocket) return {};
  const { WebSocket } = await import("ws");
  return { WebSocket };
}
