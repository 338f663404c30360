// Tabs that share a connection, in one process. tests/js/client_browser.mjs has real tabs, which freeze.

import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket } from "ws";
import { connect } from "../../../clients/js/dist/shared.js";
import "./locks.mjs";
import { SERVER, next, range, wait } from "./support.mjs";

/** What distinguishes the events of this run from older ones of the channel. */
const RUN = Math.random().toString(36).slice(2);

/** The ids of the events 0, 1, 2… of this run. */
const ids = [];
async function publish() {
  const response = await fetch(new URL("/publish", SERVER), { method: "POST", body: `${RUN} ${ids.length}` });
  ids.push(await response.text());
}


let count = 0;
/** A tab that begins after the event of this number, or where the others are. */
class Tab {
  seen = [];

  constructor(name, after, transport) {
    this.after = after;
    const options = { shared: name, since: ids[after], transports: [transport], WebSocket, minDelay: 1, maxDelay: 20, lease: 600_000 };
    this.push = connect(new URL("/channel", SERVER), options);
    this.push.on("event", ({ data }) => data.startsWith?.(RUN) && this.seen.push(Number(data.split(" ")[1])));
    this.push.on("gap", ({ reason }) => this.seen.push(reason));
  }

  async hasSeen(number) {
    while (!this.seen.includes(number)) await next(this.push, "event");
  }

  /** The tab has seen each event after its first one, once and in order. */
  check() {
    const first = this.after == null ? this.seen[0] : this.after + 1;
    assert.deepEqual(this.seen, range(first, first + this.seen.length - 1), `after ${this.after}`);
  }
}

for (const transport of ["websocket", "sse", "long-poll"]) {
  test(`${transport}: tabs that hold only a cursor get what follows it`, async () => {
    while (ids.length < 10) await publish();
    for (const places of [[0, 5, undefined], [5, 0, undefined], [undefined, 5, 0], [5, 5, 9], [9, 0, 5]]) {
      const name = `bare ${++count}`;
      const base = ids.length;
      for (let n = 0; n < 10; n++) await publish();
      const tabs = places.map((place) => new Tab(name, place == null ? undefined : base + place, transport));
      await tabs.find(({ after }) => after === base + 0)?.hasSeen(ids.length - 1);
      for (const { push } of tabs) if (push.state !== "open") await next(push, "state", (state) => state === "open");
      await publish();
      for (const tab of tabs) {
        if (tab.after == null) continue;
        await tab.hasSeen(ids.length - 1);
        tab.check();
      }
      // The leader is gone, and a tab that knows nothing but a cursor stands in line with the others.
      const late = new Tab(name, base + 2, transport);
      tabs.shift().push.close();
      tabs.push(late);
      await publish();
      await publish();
      for (const tab of tabs) {
        await tab.hasSeen(ids.length - 1);
        tab.check();
        tab.push.close();
      }
    }
  });

  test(`${transport}: tabs that come and go at random miss and repeat nothing`, async () => {
    const random = (max) => Math.floor(Math.random() * max);
    for (let round = 0; round < 3; round++) {
      const name = `random ${++count}`;
      const all = [];
      const open = [];
      for (let step = 0; step < 40; step++) {
        await publish();
        if (open.length < 5 && random(2)) {
          const tab = new Tab(name, random(3) ? ids.length - 1 - random(Math.min(ids.length, 30)) : undefined, transport);
          all.push(tab);
          open.push(tab);
        } else if (open.length > 1 && !random(3)) open.splice(random(2) ? 0 : random(open.length), 1)[0].push.close();
        await wait(random(4) ? random(20) : 300);
      }
      await wait(500);
      await publish();
      for (const tab of open) await tab.hasSeen(ids.length - 1);
      for (const tab of open) tab.push.close();
      for (const tab of all) tab.check();
    }
  });
}

test("a slow loop in a tab gets a gap", async (context) => {
  const options = { shared: `slow ${++count}`, transports: ["sse"], maxBuffered: 10, lease: 600_000 };
  const push = connect(new URL("/channel", SERVER), options);
  context.after(() => push.close());
  const texts = [];
  push.on("event", ({ data }) => texts.push(data));
  const loop = push[Symbol.asyncIterator]();
  const first = loop.next();
  if (push.state !== "open") await next(push, "state", (state) => state === "open");
  await publish();
  const items = [(await first).value];
  for (let n = 0; n < 100; n++) await publish();
  const last = `${RUN} ${ids.length - 1}`;
  while (texts.at(-1) !== last) await wait(1);
  await wait(10);
  while (items.at(-1).data !== last) items.push((await loop.next()).value);
  const gaps = items.filter(({ gap }) => gap).map(({ gap }) => gap);
  assert.ok(gaps[0] && gaps.every(({ reason }) => reason === "lagged"));
  const missed = gaps.reduce((sum, gap) => sum + gap.missed, 0);
  assert.equal(items.length - gaps.length + missed, texts.length);
  // The items before the first `await`, and those that wait.
  assert.ok(items.length <= 2 + 10, `${items.length}`);
});

test("a loop that reads at once gets no gap, however many events come together", async (context) => {
  let chunk = "";
  for (let n = 0; n < 3000; n++) chunk += `id: ${n}\ndata: ${n}\n\n`;
  const body = new ReadableStream({ start: (controller) => controller.enqueue(new TextEncoder().encode(chunk)) });
  const fetch = async () => new Response(body, { headers: { "content-type": "text/event-stream" } });
  const options = { shared: `at once ${++count}`, transports: ["sse"], fetch, maxBuffered: 10, lease: 600_000 };
  const push = connect(new URL("/channel", SERVER), options);
  context.after(() => push.close());
  let read = 0;
  for await (const item of push) {
    assert.equal(item.data, read++);
    if (read === 3000) break;
  }
});

test("a final error of a shared connection that nobody would learn of is on the console", async () => {
  const { error: original } = console;
  const shown = [];
  console.error = (error) => shown.push(error.status);
  try {
    const fetch = async () => new Response(null, { status: 403 });
    for (const listens of [false, true]) {
      const push = connect(new URL("/channel", SERVER), { shared: `refused ${RUN} ${listens}`, transports: ["sse"], fetch });
      if (listens) push.on("error", () => {});
      await next(push, "state", (state) => state === "closed");
      assert.deepEqual(shown.splice(0), listens ? [] : [403]);
    }
  } finally {
    console.error = original;
  }
});
