// A feed over each transport: complete, cut at every byte, and over changing transports.

import assert from "node:assert/strict";
import { test } from "node:test";
import { serve } from "./servers.mjs";
import { CuttingProxy, SERVER, TRANSPORTS, assertIsFeed, inParallel, next, open, range, readAll, wait } from "./support.mjs";

const nameOf = (transport) => transport.name ?? transport;

for (const transport of TRANSPORTS) {
  const name = nameOf(transport);

  test(`${name} delivers the feed`, async () => {
    const push = open("/feed", { transports: [transport] });
    const states = [];
    let finished = 0;
    push.on("state", (state) => states.push(state));
    push.on("finished", () => finished++);
    const empty = [];
    push.on("empty", (event) => empty.push(event.id));
    assertIsFeed(await readAll(push));
    assert.deepEqual(empty, ["3", "7", "11"]);
    assert.equal(finished, 1);
    assert.deepEqual([states[0], states.at(-1)], ["open", "closed"]);
    assert.equal(push.state, "closed");
    assert.equal(push.transport, name);
  });

  test(`${name} loses and repeats nothing, wherever it is cut`, async () => {
    const probe = await CuttingProxy.to(SERVER);
    await readAll(open(probe.url("/feed"), { transports: [transport] }));
    const length = probe.received;
    probe.close();
    assert.ok(length > 500, `${length} bytes`);
    await inParallel(8, Array.from({ length: length + 1 }).keys(), async (cut) => {
      const proxy = await CuttingProxy.to(SERVER);
      proxy.budgets = [cut];
      const push = open(proxy.url("/feed"), { transports: [transport] });
      assertIsFeed(await readAll(push), `cut after ${cut} of ${length} bytes`);
      proxy.close();
    });
  });

  test(`${name} passes on a gap with its data`, async () => {
    const push = open("/feed", { transports: [transport], since: "no-number" });
    const gaps = [];
    push.on("gap", (gap) => gaps.push(gap));
    const [first, ...events] = await readAll(push);
    const gap = { reason: "expired", requested: "no-number", resumed: "0", missed: 7 };
    assert.deepEqual(first, { type: "gap", gap, id: "0" });
    assert.deepEqual(gaps, [gap]);
    assertIsFeed(events);
  });

  test(`${name} comes back after an end with a time`, async () => {
    const push = open("/ending", { transports: [transport] });
    const events = await readAll(push);
    assert.deepEqual(events.map(({ id }) => id), ["1", "2", "3", "4"]);
  });
}

test("a connection that changes its transport goes on", async () => {
  const random = (max) => Math.floor(Math.random() * max);
  for (let round = 0; round < 40; round++) {
    const items = [];
    let cursor;
    while (items.at(-1)?.id !== "12") {
      const transport = TRANSPORTS[random(3)];
      const push = open("/feed", { transports: [transport], since: cursor });
      const count = 1 + random(5);
      for await (const item of push) {
        items.push(item);
        cursor = item.id;
        if (items.length % count === 0) break;
      }
      push.close();
    }
    assertIsFeed(items);
  }
});

test("a transport that stops working is replaced in mid-stream", async () => {
  const proxy = await CuttingProxy.to(SERVER);
  proxy.budgets = [400];
  const push = open(proxy.url("/feed"));
  const transports = new Set();
  push.on("event", () => transports.add(push.transport));
  // The WebSocket is cut in mid-stream. From then on no handshake of one succeeds.
  next(push, "state", (state) => state === "waiting").then(() => (proxy.refused = /upgrade: websocket/i));
  assertIsFeed(await readAll(push));
  assert.deepEqual([...transports], ["websocket", "sse"]);
  proxy.close();
});

test("a slow loop loses nothing, and buffers little", async () => {
  const count = 300;
  for (const transport of TRANSPORTS) {
    const since = await publish("start");
    const push = open("/channel", { transports: [transport], since, maxBuffered: 10 });
    const texts = [];
    let isPublished;
    for await (const event of push) {
      isPublished ??= (async () => {
        for (let n = 1; n <= count; n++) await publish(`n${n}`);
      })();
      texts.push(event.data);
      await new Promise((resolve) => setTimeout(resolve, 1));
      if (event.data === `n${count}`) break;
      if (event.data === "first") continue;
    }
    await isPublished;
    push.close();
    assert.deepEqual(texts.filter((text) => /^n/.test(text)), Array.from({ length: count }, (_, n) => `n${n + 1}`), nameOf(transport));
  }

  async function publish(text) {
    const id = await (await fetch(new URL("/publish", SERVER), { method: "POST", body: text })).text();
    if (text === "start") await fetch(new URL("/publish", SERVER), { method: "POST", body: "first" });
    return id;
  }
});

test("long-poll: a slow loop stops the polls until it has caught up", async () => {
  let sent = 0;
  const { url } = await serve((_, response) => {
    const batch = range(sent + 1, (sent += 5)).map((n) => ({ id: `${n}`, data: n }));
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(batch));
  });
  const push = open(url, { transports: ["long-poll"], maxBuffered: 10 });
  const items = push[Symbol.asyncIterator]();
  const read = [];
  while (read.length < 100) {
    read.push((await items.next()).value.data);
    if (read.length % 10 === 1) await wait(50);
    assert.ok(sent - read.length < 20, `${sent} events were sent when ${read.length} were read`);
  }
  push.close();
  assert.deepEqual(read, range(1, 100));
});

test("a POST streams its answer, and resumes if it may", async () => {
  const body = "Resume this answer wherever the connection is cut please";
  const read = async (url, options) => (await readAll(open(url, { body, ...options }))).map(({ data }) => data).join(" ");
  assert.equal(await read("/answer"), body);
  const proxy = await CuttingProxy.to(SERVER);
  await read(proxy.url("/answer"));
  const length = proxy.received;
  proxy.close();
  for (let cut = 0; cut < length; cut += 7) {
    const proxy = await CuttingProxy.to(SERVER);
    proxy.budgets = [cut];
    assert.equal(await read(proxy.url("/answer"), { resume: true }), body, `cut after ${cut} of ${length} bytes`);
    proxy.close();
  }
});

test("a POST that may not be repeated fails if it is cut", async () => {
  const proxy = await CuttingProxy.to(SERVER);
  proxy.budgets = [20];
  const push = open(proxy.url("/answer"), { body: "a b c" });
  await assert.rejects(readAll(push), { name: "PushError", final: true, transport: "sse" });
  assert.equal(proxy.connections, 1);
  proxy.close();
});

test("an event stream without ids is read, and its interruption is a gap", async () => {
  const proxy = await CuttingProxy.to(SERVER);
  const push = open(proxy.url("/foreign-sse"), { transports: ["sse"] });
  const items = [];
  for await (const item of push) {
    items.push(item.gap ? item.gap.reason : item.data);
    if (items.length === 3) proxy.cut();
    if (items.length === 7) break;
  }
  push.close();
  proxy.close();
  assert.deepEqual(items, [1, 2, 3, "unknown", 1, 2, 3]);
  assert.equal(push.cursor, undefined);
});

test("base64 in an event stream becomes bytes", async () => {
  const [event] = await readAll(open("/bytes", { transports: ["sse"] }));
  assert.deepEqual(event.data, Uint8Array.of(0, 128, 255));
});

test("send reaches nobody without a WebSocket", async () => {
  const push = open("/channel", { transports: ["sse"] });
  await next(push, "state", (state) => state === "open");
  assert.equal(push.send("hello"), false);
  push.close();
});

test("a signal closes a connection", async () => {
  const controller = new AbortController();
  const push = open("/channel", { transports: ["sse"], signal: controller.signal });
  const ended = readAll(push);
  await next(push, "state", (state) => state === "open");
  controller.abort();
  await ended;
  assert.equal(push.state, "closed");
  const late = open("/channel", { signal: controller.signal });
  assert.equal(late.state, "closed");
  assert.deepEqual(await readAll(late), []);
});

test("an error of a listener is reported, and loses nothing", async () => {
  const push = open("/feed", { transports: ["sse"] });
  const errors = [];
  const onError = (error) => errors.push(error.message);
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", onError);
  push.on("json", () => {
    throw new Error("mine");
  });
  assertIsFeed(await readAll(push));
  await new Promise((resolve) => setImmediate(resolve));
  process.off("uncaughtException", onError);
  assert.deepEqual(errors, ["mine", "mine", "mine"]);
});
