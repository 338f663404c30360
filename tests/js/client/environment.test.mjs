// What the page, the network, the machine's sleep and its clock do to connections. The page is an EventTarget here; tests/js/client_browser.mjs
// has real ones.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { once } from "node:events";
import { afterEach, test } from "node:test";
import { CuttingProxy, SERVER, next, open, wait } from "./support.mjs";

const page = new EventTarget();
globalThis.addEventListener = page.addEventListener.bind(page);
globalThis.document = Object.assign(new EventTarget(), { hidden: false });

const happen = (target, type, fields = {}) => target.dispatchEvent(Object.assign(new Event(type), fields));

const closers = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

function connected(url, options) {
  const push = open(url, { transports: ["sse"], ...options });
  closers.push(() => push.close());
  return push;
}

/** Serves event streams that stay open. `onRequest` gets each response. */
async function serve(onRequest) {
  const requests = [];
  const server = createServer((request, response) => {
    requests.push(request.headers["last-event-id"]);
    response.writeHead(200, { "content-type": "text/event-stream" });
    onRequest(response, requests.length);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  closers.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}/`, requests, server };
}

async function isOpen(push) {
  if (push.state !== "open") await next(push, "state", (state) => state === "open");
}

/** Stops the clock, and the ticks of connections that are opened from now on. */
function stopClock() {
  const { now } = Date;
  const { setInterval: original } = globalThis;
  const ticks = [];
  let time = now();
  Date.now = () => time;
  globalThis.setInterval = (tick) => void ticks.push(tick);
  closers.push(() => {
    Date.now = now;
    globalThis.setInterval = original;
  });
  /** Sets the clock forward or back, and lets it tick once. */
  return function advance(milliseconds) {
    time += milliseconds;
    for (const tick of ticks) tick();
  };
}

test("a connection that waits comes back when the network does", async () => {
  let isUp = false;
  const fetch = async (url, init) =>
    isUp ? globalThis.fetch(new URL("/feed", SERVER), init) : new Response("", { status: 503, headers: { "retry-after": "3600" } });
  const push = connected("/feed", { fetch });
  await next(push, "state", (state) => state === "waiting");
  isUp = true;
  const finished = next(push, "finished");
  happen(page, "online");
  await finished;
});

test("an open connection is opened anew when the network is back, if it can resume", async () => {
  const resumable = await serve((response) => response.write("id: 7\ndata: x\n\n"));
  const push = connected(resumable.url);
  await next(push, "event");
  happen(page, "online");
  await next(push, "event");
  assert.deepEqual(resumable.requests, [undefined, "7"]);

  const other = await serve((response) => response.write("data: x\n\n"));
  const plain = connected(other.url);
  await next(plain, "event");
  happen(page, "online");
  await wait(50);
  assert.equal(other.requests.length, 1);
});

test("an interruption is a gap without a cursor, also before the first event, unless the stream has just begun", async () => {
  // The times between two ticks. A late tick alone does not say that the page has read the stream for so long.
  for (const [times, isGap] of [[[], false], [[60_000], false], [[2000, 2000, 2000], true]]) {
    const advance = stopClock();
    const answers = [];
    const { url } = await serve((response) => {
      response.write(":\n");
      answers.push(response);
    });
    const push = connected(url);
    const items = [];
    push.on("gap", ({ reason }) => items.push(reason));
    push.on("event", ({ data }) => items.push(data));
    await isOpen(push);
    for (const time of times) advance(time);
    const reopened = next(push, "state", (state) => state === "open");
    answers[0].destroy();
    await reopened;
    answers[1].write("data: 1\n\n");
    await next(push, "event");
    assert.deepEqual(items, isGap ? ["unknown", 1] : [1], times.join());
    push.close();
    for (const close of closers.splice(0)) close();
  }
});

test("a page for the back button, and a frozen one, are disconnected until they are back", async () => {
  const { url, requests } = await serve((response, count) => response.write(`id: ${count}\ndata: x\n\n`));
  const push = connected(url);
  await next(push, "event");
  const leave = [
    [page, "pagehide", { persisted: true }, "pageshow"],
    [document, "freeze", {}, "resume"],
  ];
  for (const [target, away, fields, back] of leave) {
    const paused = next(push, "state", (state) => state === "paused");
    happen(target, away, fields);
    await paused;
    const event = next(push, "event");
    happen(target, back, fields);
    await event;
  }
  happen(page, "pagehide", { persisted: false });
  await wait(20);
  assert.equal(push.state, "open");
  assert.deepEqual(requests, [undefined, "1", "2"]);
});

test("a hidden page stays connected unless it is told otherwise", async () => {
  const hide = (hidden) => {
    document.hidden = hidden;
    happen(document, "visibilitychange");
  };
  const { url } = await serve((response) => response.write("id: 1\ndata: x\n\n"));
  const stays = connected(url);
  const pauses = connected(url, { pauseWhenHidden: true });
  await Promise.all([next(stays, "event"), next(pauses, "event")]);
  hide(true);
  await next(pauses, "state", (state) => state === "paused");
  assert.equal(stays.state, "open");
  hide(false);
  await isOpen(pauses);
});

/** Event streams whose chunks the test writes. */
class ControlledStreams {
  /** The cursors of the requests. */
  requests = [];
  #controller;
  #onRead = () => {};

  fetch = async (_, { headers }) => {
    this.requests.push(headers.get("last-event-id"));
    const pull = (controller) =>
      new Promise((resolve) => {
        this.#controller = { enqueue: (chunk) => resolve(controller.enqueue(chunk)) };
        this.#onRead();
      });
    const body = new ReadableStream({ pull }, { highWaterMark: 0 });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  };

  /** Resolves when a connection has opened its stream number `count`, and waits for a chunk. */
  async areRead(count) {
    while (this.requests.length < count || !this.#controller) await new Promise((resolve) => (this.#onRead = resolve));
  }

  /** Resolves when the connection has processed the text. */
  async write(text) {
    await this.areRead(this.requests.length);
    const controller = this.#controller;
    this.#controller = undefined;
    controller.enqueue(new TextEncoder().encode(text));
    await this.areRead(this.requests.length);
  }
}

test("a clock that jumps an hour forward costs a reconnection, and one that jumps back costs nothing", async () => {
  const advance = stopClock();
  const streams = new ControlledStreams();
  const push = connected("/", { fetch: streams.fetch });
  await streams.areRead(1);
  await streams.write("id: 1\ndata: 1\n\n");
  const event = next(push, "event");
  advance(3_600_000);
  await isOpen(push);
  while (streams.requests.length < 2) await wait(1);
  await streams.write("id: 2\ndata: 2\n\n");
  assert.equal((await event).data, 2);
  advance(-7_200_000);
  for (let n = 0; n < 10; n++) advance(1000);
  await streams.write(":\n");
  assert.deepEqual(streams.requests, [null, "1"]);
  assert.equal(push.state, "open");
});

test("a stream with announced heartbeats is opened anew after 2.5 of silence", async () => {
  const advance = stopClock();
  const streams = new ControlledStreams();
  connected("/", { fetch: streams.fetch, heartbeat: 100 });
  await streams.areRead(1);
  await streams.write("id: 1\ndata: x\n\n");
  for (let n = 0; n < 20; n++) {
    advance(90);
    await streams.write(":\n");
  }
  advance(125);
  advance(125);
  await streams.write(":\n");
  assert.deepEqual(streams.requests, [null]);
  // A page that was not run for a while is late, and no sign of a dead connection.
  advance(10_000);
  await streams.write(":\n");
  assert.deepEqual(streams.requests, [null]);
  for (let n = 0; n < 3; n++) advance(100);
  while (streams.requests.length < 2) await wait(1);
  assert.equal(streams.requests[1], "1");
});

test("a heartbeat arms the watchdog, and silence without one does not", async () => {
  const advance = stopClock();
  const silent = new ControlledStreams();
  connected("/", { fetch: silent.fetch });
  const beating = new ControlledStreams();
  connected("/", { fetch: beating.fetch });
  await Promise.all([silent.areRead(1), beating.areRead(1)]);
  await silent.write(":\n");
  await beating.write(":\nid: 1\n\n");
  for (let n = 0; n < 20; n++) advance(1000);
  await beating.write(":\n");
  // The heartbeat came after 20 s, so 50 s may be silent.
  for (let n = 0; n < 50; n++) advance(1000);
  await beating.write(":\n");
  assert.deepEqual(beating.requests, [null]);
  for (let n = 0; n < 126; n++) advance(1000);
  while (beating.requests.length < 2) await wait(1);
  assert.equal(beating.requests[1], "1");
  assert.deepEqual(silent.requests, [null]);
});

test("a connection goes back up to the better transport, and loses nothing", async () => {
  const proxy = await CuttingProxy.to(SERVER);
  closers.push(() => proxy.close());
  proxy.refused = /upgrade: websocket/i;
  const publish = async (text) => (await fetch(new URL("/publish", SERVER), { method: "POST", body: text })).text();
  const since = await publish("zero");
  const push = connected(proxy.url("/channel"), { transports: undefined, since, upgradeAfter: 50 });
  const seen = [];
  push.on("event", ({ data }) => seen.push([push.transport, data]));
  let isDone = false;
  const publishing = (async () => {
    for (let n = 0; !isDone; n++) await publish(`n${n}`).then(() => wait(5));
  })();
  while (seen.length < 10) await next(push, "event");
  assert.equal(seen.at(-1)[0], "sse");
  proxy.refused = /$^/;
  while (seen.at(-1)[0] !== "websocket") await next(push, "event");
  for (let n = 0; n < 10; n++) await next(push, "event");
  isDone = true;
  await publishing;
  assert.deepEqual(seen.map(([, data]) => data), seen.map((_, n) => `n${n}`));
});

test("1000 clients with the same hint come back spread over time", async () => {
  const delays = [];
  const { setTimeout: original } = globalThis;
  globalThis.setTimeout = (task, delay, ...rest) => {
    if (delay >= 2000 && delay < 4000) delays.push(delay);
    return original(task, delay, ...rest);
  };
  closers.push(() => (globalThis.setTimeout = original));
  const fetch = async () => new Response("retry: 2000\ndata: x\n\n", { headers: { "content-type": "text/event-stream" } });
  const clients = Array.from({ length: 1000 }, () => connected("/", { fetch, openTimeout: 100_000 }));
  await Promise.all(clients.map((push) => next(push, "state", (state) => state === "waiting")));
  await wait(0);
  assert.equal(delays.length, 1000);
  const buckets = Array.from({ length: 10 }, (_, n) => delays.filter((delay) => Math.floor((delay - 2000) / 100) === n).length);
  for (const count of buckets) assert.ok(count > 50, buckets.join());
});
