// Compares the client with others from npm: size, and events for each second of CPU time.
//
//     node bench.mjs            prints a table
//
// Each client reads the same events of 64 bytes of JSON in a process of its own, and ends with the parsed value. The figures are medians of
// several rounds. CPU time is that of the client's process after its first event, so other programs on the machine change it little.

import { execFile, fork } from "node:child_process";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";

/** The number of events that a client reads. */
const EVENTS = 200_000;

/** The number of events that the server writes at once. */
const EVENTS_PER_WRITE = 32;

const ROUNDS = 7;

/** What is measured: the title, the source of the smallest program, and how the events are read. */
const CLIENTS = {
  "tower-push, SSE": { source: 'export { connect } from "./dist/index.js"', read: (url, onEvent) => readTowerPush(url, "sse", onEvent) },
  "eventsource": { source: 'export { EventSource } from "eventsource"', read: readEventSource },
  "@microsoft/fetch-event-source": { source: 'export { fetchEventSource } from "@microsoft/fetch-event-source"', read: readFetchEventSource },
  "tower-push, WebSocket": { source: 'export { connect } from "./dist/index.js"', read: (url, onEvent) => readTowerPush(url, "websocket", onEvent) },
  "reconnecting-websocket": { source: 'export { default } from "reconnecting-websocket"', read: readReconnectingWebSocket },
};

async function readTowerPush(url, transport, onEvent) {
  const { connect } = await import("./dist/index.js");
  const { WebSocket } = await import("ws");
  connect(url, { transports: [transport], WebSocket }).on("price", ({ data }) => onEvent(data));
}

async function readEventSource(url, onEvent) {
  const { EventSource } = await import("eventsource");
  new EventSource(url).addEventListener("price", ({ data }) => onEvent(JSON.parse(data)));
}

async function readFetchEventSource(url, onEvent) {
  // The package is for pages.
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
  const { fetchEventSource } = await import("@microsoft/fetch-event-source");
  const onmessage = ({ event, data }) => event === "price" && onEvent(JSON.parse(data));
  fetchEventSource(url, { onmessage, openWhenHidden: true });
}

async function readReconnectingWebSocket(url, onEvent) {
  const [{ default: module }, { WebSocket }] = await Promise.all([import("reconnecting-websocket"), import("ws")]);
  const ReconnectingWebSocket = module.default ?? module;
  const socket = new ReconnectingWebSocket(url.replace("http", "ws"), "json.tower-push", { WebSocket });
  socket.addEventListener("message", ({ data }) => {
    const { event, data: price } = JSON.parse(data);
    if (event === "price") onEvent(price);
  });
}

/** Serves the events, over an event stream or a WebSocket. */
async function serve() {
  const { WebSocketServer } = await import("ws");
  const data = (n) => JSON.stringify({ n, currency: "EUR", price: "1.0842", exchange: "XETR" }).padEnd(64);
  const server = createServer(async (_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (let n = 0; n < EVENTS; ) {
      let text = "";
      for (let end = n + EVENTS_PER_WRITE; n < end; n++) text += `id: e-${n}\nevent: price\ndata: ${data(n)}\n\n`;
      if (!response.write(text)) await new Promise((resolve) => response.once("drain", resolve));
    }
  });
  const sockets = new WebSocketServer({ server, perMessageDeflate: false });
  sockets.on("connection", async (socket) => {
    for (let n = 0; n < EVENTS; n++) {
      const text = `{"id":"e-${n}","event":"price","data":${data(n)}}`;
      if (n % EVENTS_PER_WRITE) socket.send(text);
      else await new Promise((resolve) => socket.send(text, resolve));
    }
  });
  server.listen(0, "127.0.0.1", () => process.send(`http://127.0.0.1:${server.address().port}/`));
}

/** Reads all events, and prints the events for each second of CPU time. */
async function measure(name, url) {
  let count = 0;
  let start;
  await CLIENTS[name].read(url, ({ n }) => {
    if (n !== count) throw new Error(`event ${n} in place of ${count}`);
    start ??= process.cpuUsage();
    if (++count < EVENTS) return;
    const { user, system } = process.cpuUsage(start);
    process.stdout.write(String(Math.round(EVENTS / ((user + system) / 1e6))), () => process.exit());
  });
}

/** Returns the size of the smallest program that uses the client, minified, and then gzipped. */
async function sizeOf(source) {
  const { build } = await import("esbuild");
  const built = await build({
    stdin: { contents: source, resolveDir: fileURLToPath(new URL(".", import.meta.url)) },
    bundle: true,
    minify: true,
    write: false,
    format: "esm",
    platform: "browser",
    target: "es2022",
  });
  const { contents } = built.outputFiles[0];
  return [contents.length, gzipSync(contents, { level: 9 }).length];
}

const median = (numbers) => [...numbers].sort((one, other) => one - other)[Math.floor(numbers.length / 2)];

async function compare() {
  const run = promisify(execFile);
  const file = fileURLToPath(import.meta.url);
  const server = fork(file, ["serve"]);
  const url = await new Promise((resolve) => server.once("message", resolve));
  const results = Object.fromEntries(Object.keys(CLIENTS).map((name) => [name, []]));
  for (let round = 0; round < ROUNDS; round++) {
    for (const name of Object.keys(CLIENTS)) {
      const { stdout } = await run(process.execPath, [file, "measure", name, url]);
      results[name].push(Number(stdout));
    }
  }
  server.kill();
  console.log("| client | events for each second of CPU time | minified | gzipped |\n|---|---|---|---|");
  for (const [name, { source }] of Object.entries(CLIENTS)) {
    const [minified, gzipped] = await sizeOf(source);
    console.log(`| ${name} | ${median(results[name]).toLocaleString("en")} | ${minified} | ${gzipped} |`);
  }
}

const [, , task, ...options] = process.argv;
await { serve, measure, undefined: compare }[task](...options);
