// The messages of tabs that share a connection: what a tab does with those of any leader, and what its own ones say. The test is one of the tabs.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, test } from "node:test";
import { WebSocket, WebSocketServer } from "ws";
import { connect as connectShared } from "../../../clients/js/dist/shared.js";
import { connect as connectTopics } from "../../../clients/js/dist/shared-topics.js";
import "./locks.mjs";
import { SERVER, next, range, readAll, speedUpTicks, until, wait } from "./support.mjs";

const LEASE = 600_000;

const closers = [];
after(() => {
  for (const close of closers) close();
});

let count = 0;

/** The test as a tab: it may hold the lock, and sends the messages of a leader. */
class FakeTab {
  messages = [];
  #channel;
  #release = () => {};

  /** `prefix` is the beginning of the names of the module's groups. */
  constructor(prefix, url, key) {
    this.name = `${prefix} ${JSON.stringify([url, key])}`;
    this.#channel = new BroadcastChannel(this.name);
    this.#channel.onmessage = ({ data }) => this.messages.push(data);
    closers.push(() => {
      this.#release();
      this.#channel.close();
    });
  }

  /** Becomes the leader before another tab does. */
  async lead() {
    await new Promise((held) => {
      navigator.locks.request(this.name, { signal: new AbortController().signal }, () => {
        held();
        return new Promise((resolve) => (this.#release = resolve));
      });
    });
  }

  post(message) {
    this.#channel.postMessage(message);
  }

  /** Resolves with the first message from now on that a condition accepts. */
  async hears(condition) {
    const from = this.messages.length;
    let found;
    await until(() => (found = this.messages.slice(from).find(condition)));
    return found;
  }
}

function topicTab(key, topics, options) {
  const push = connectTopics(new URL("/topics", SERVER), { shared: key, lease: LEASE, topics, transports: ["websocket"], WebSocket, ...options });
  closers.push(() => push.close());
  return push;
}

const position = (term, sequence) => [`${String(term).padStart(10, "0")} test`, sequence];
const leader = (term, sequence, fields) => ({ kind: "leader", position: position(term, sequence), state: "open", begun: [], ...fields });
const report = (term, sequence, cursor, ...report) => ({ kind: "report", position: position(term, sequence), cursor, report });
const event = (id, topic = "a") => ["event", { type: "message", data: id, id, topic }];

/** Answers requests with event streams that the test writes. */
function eventStreams() {
  const cursors = [];
  const streams = [];
  const fetch = async (_, { headers }) => {
    cursors.push(headers.get("last-event-id"));
    const { readable, writable } = new TransformStream();
    const writer = writable.getWriter();
    // The client may have closed the stream.
    streams.push({ write: (text) => writer.write(text).catch(() => {}) });
    return new Response(readable.pipeThrough(new TextEncoderStream()), { headers: { "content-type": "text/event-stream" } });
  };
  return { cursors, streams, fetch };
}

/** Returns a leader that is played by the test, and a tab without topics, which has got the event `e1`. The page of the tab is `page`. */
async function followedWithoutTopics() {
  const key = `without topics ${++count}`;
  const fake = new FakeTab("tower-push", new URL("/channel", SERVER).href, key);
  await fake.lead();
  const { cursors, streams, fetch } = eventStreams();
  const page = (globalThis.document = new EventTarget());
  const push = connectShared(new URL("/channel", SERVER), { shared: key, lease: LEASE, since: "c0", transports: ["sse"], fetch });
  delete globalThis.document;
  closers.push(() => push.close());
  const items = [];
  push.on("event", ({ id }) => items.push(id));
  push.on("gap", ({ reason }) => items.push(reason));
  await fake.hears(({ kind }) => kind === "ping");
  fake.post(leader(1, 0, { cursor: "c0" }));
  fake.post(report(1, 1, "e1", ...event("e1")));
  await next(push, "event");
  return { fake, page, push, items, cursors, streams };
}

/** Returns a leader that is played by the test, and a tab that follows it after the cursor `c0`. */
async function followed(topics = ["a"]) {
  const key = `followed ${++count}`;
  const fake = new FakeTab("tower-push topics", new URL("/topics", SERVER).href, key);
  await fake.lead();
  const push = topicTab(key, topics, { since: "c0" });
  const items = [];
  push.on("event", ({ id }) => items.push(id));
  push.on("gap", ({ reason }) => items.push(reason));
  await fake.hears(({ kind }) => kind === "ping");
  fake.post(leader(1, 0, { topics, cursor: "c0" }));
  fake.post(report(1, 1, "e1", ...event("e1")));
  await next(push, "event");
  return { fake, push, items };
}

for (const [connect, path, options] of [
  [connectShared, "/channel", {}],
  [connectTopics, "/topics", { topics: ["a"] }],
]) {
  test(`${path}: a tab can send while the leader has nothing to say`, async () => {
    const all = { shared: `quiet ${++count}`, lease: 60, transports: ["websocket"], WebSocket, ...options };
    const tabs = [0, 1].map(() => connect(new URL(path, SERVER), all));
    await until(() => tabs.every(({ state }) => state === "open"));
    const follower = tabs.find(({ transport }) => !transport);
    for (let n = 0; n < 60; n++) {
      assert.equal(follower.send("hello"), true, `message ${n}`);
      await wait(10);
    }
    for (const push of tabs) push.close();
  });

  test(`${path}: a tab sends nothing to a leader that does not answer`, async () => {
    const key = `silent ${++count}`;
    const fake = new FakeTab(path === "/topics" ? "tower-push topics" : "tower-push", new URL(path, SERVER).href, key);
    await fake.lead();
    const push = connect(new URL(path, SERVER), { shared: key, lease: 40, transports: ["websocket"], WebSocket, ...options });
    await fake.hears(({ kind }) => kind === "ping");
    fake.post(leader(1, 0, { topics: ["a"] }));
    await next(push, "state", (state) => state === "open");
    assert.equal(push.send("hello"), true);
    await until(() => !push.send("hello"));
    push.close();
  });

  test(`${path}: a loop over a connection that was never opened ends`, async () => {
    const push = connect(new URL(path, SERVER), { shared: "aborted", signal: AbortSignal.abort(), ...options });
    assert.equal(push.state, "closed");
    assert.deepEqual(await readAll(push), []);
  });

  test(`${path}: nothing changes the state of a closed connection`, async () => {
    const push = connect(new URL(path, SERVER), { shared: `closed ${++count}`, lease: LEASE, WebSocket, ...options });
    const states = [];
    push.on("state", (state) => {
      states.push(state);
      if (state === "open") push.close();
    });
    await next(push, "state", (state) => state === "closed");
    await wait(300);
    assert.deepEqual(states.slice(-2), ["open", "closed"]);
  });

  test(`${path}: a tab that hears that the leader's connection is closed is not closed`, async () => {
    const key = `closed leader ${++count}`;
    const fake = new FakeTab(path === "/topics" ? "tower-push topics" : "tower-push", new URL(path, SERVER).href, key);
    await fake.lead();
    const push = connect(new URL(path, SERVER), { shared: key, lease: LEASE, ...options });
    const states = [];
    push.on("state", (state) => states.push(state));
    const items = readAll(push);
    await fake.hears(({ kind }) => kind === "ping");
    fake.post(leader(1, 0, { topics: ["a"], state: "closed" }));
    fake.post(leader(1, 0, { topics: ["a"], state: "waiting" }));
    await until(() => states.length);
    push.close();
    assert.deepEqual(states, ["waiting", "closed"]);
    assert.deepEqual(await items, []);
  });

  test(`${path}: a leader that hears of a later one still speaks for its own term`, async () => {
    const key = `deposed ${++count}`;
    const push = connect(new URL(path, SERVER), { shared: key, lease: LEASE, transports: ["websocket"], WebSocket, ...options });
    const fake = new FakeTab(path === "/topics" ? "tower-push topics" : "tower-push", new URL(path, SERVER).href, key);
    await next(push, "state", (state) => state === "open");
    fake.post(leader(7, 5, { topics: ["b"], cursor: "x" }));
    fake.post({ kind: "ping" });
    const { position } = await fake.hears(({ kind }) => kind === "leader");
    assert.match(position[0], /^0000000001 /);
    push.close();
  });
}

test("repetitions are counted anew under each leader", async () => {
  const { fake, push, items } = await followed();
  let term = 1;
  // Each leader repeats less than a tab drops at most, and two of them together more.
  for (const from of [position(1, 0), position(2, 0)]) {
    fake.post(leader(++term, 0, { topics: ["a"], cursor: "c0", from }));
    for (const n of range(1, 600)) fake.post(report(term, n, `old${n}`, ...event(`old${n}`)));
  }
  fake.post(report(term, 601, "e1", ...event("e1")));
  fake.post(report(term, 602, "e2", ...event("e2")));
  while (items.at(-1) !== "e2") await next(push, "event");
  assert.deepEqual(items, ["e1", "e2"]);
  push.close();
});

test("a tab that misses something of what a new leader repeats passes on all that it reads itself", async () => {
  const { fake, push, items, cursors, streams } = await followedWithoutTopics();
  fake.post(leader(2, 0, { cursor: "c0", from: position(1, 0) }));
  fake.post(report(2, 3, "e3", ...event("e3")));
  await until(() => streams.length === 1);
  streams[0].write("id: e2\ndata: 2\n\nid: e3\ndata: 3\n\n");
  while (items.at(-1) !== "e3") await next(push, "event");
  fake.post(report(2, 4, "e4", ...event("e4")));
  await next(push, "event");
  assert.deepEqual(items, ["e1", "e2", "e3", "e4"]);
  assert.deepEqual(cursors, ["e1"]);
  push.close();
});

test("a tab that is frozen while it catches up catches up when it is back", async () => {
  const { fake, page, push, items, cursors, streams } = await followedWithoutTopics();
  fake.post(report(1, 3, "e3", ...event("e3")));
  await until(() => streams.length === 1);
  page.dispatchEvent(new Event("freeze"));
  const ping = fake.hears(({ kind }) => kind === "ping");
  page.dispatchEvent(new Event("resume"));
  await ping;
  fake.post(leader(1, 3, { cursor: "e3" }));
  await until(() => streams.length === 2);
  streams[1].write("id: e2\ndata: 2\n\nid: e3\ndata: 3\n\n");
  while (items.at(-1) !== "e3") await next(push, "event");
  assert.deepEqual(items, ["e1", "e2", "e3"]);
  assert.deepEqual(cursors, ["e1", "e1"]);
  push.close();
});

test("a tab that is closed by a listener passes on nothing of what it has held back", async () => {
  const { fake, push, items, streams } = await followedWithoutTopics();
  for (const n of [3, 4, 5]) fake.post(report(1, n, `e${n}`, ...event(`e${n}`)));
  await until(() => streams.length === 1);
  push.on("cursor", (cursor) => cursor === "e3" && push.close());
  streams[0].write("id: e2\ndata: 2\n\nid: e3\ndata: 3\n\n");
  await next(push, "state", (state) => state === "closed");
  await wait(50);
  assert.deepEqual(items, ["e1", "e2", "e3"]);
  assert.equal(push.cursor, "e3");
});

test("a new leader of which only a report arrives is asked for its topics, and gets all publications", async () => {
  const { fake, push } = await followed();
  const publication = push.publish("a", "text");
  await fake.hears(({ kind }) => kind === "publish");
  const heard = Promise.all(["topics", "ping", "publish"].map((wanted) => fake.hears(({ kind }) => kind === wanted)));
  fake.post(report(2, 5, "c5", "state", "open"));
  const [topics, , { tab, ref }] = await heard;
  assert.deepEqual([topics.topics, topics.resumed], [["a"], ["a"]]);
  fake.post({ kind: "published", tab, ref, result: { id: "p1" } });
  assert.equal(await publication, "p1");
  push.close();
});

test("what a tab publishes and sends is JSON, also if it has no clone", async () => {
  const { fake, push } = await followed();
  const reactive = new Proxy({ text: "é", show() {} }, {});
  const heard = Promise.all(["publish", "send"].map((wanted) => fake.hears(({ kind }) => kind === wanted)));
  const publication = push.publish("a", reactive);
  await until(() => push.send(reactive));
  const [{ tab, ref, publication: [topic, data] }, { message }] = await heard;
  assert.deepEqual([topic, data, message], ["a", { text: "é" }, '{"text":"é"}']);
  fake.post({ kind: "published", tab, ref, result: { id: "p1" } });
  assert.equal(await publication, "p1");
  const cycle = {};
  cycle.self = cycle;
  for (const noJson of [cycle, () => {}, 1n]) await assert.rejects(push.publish("a", noJson));
  push.close();
});

// Tabs that have no cursor.

/** The time that has passed for the tabs, beside the real one, in milliseconds. */
let passed = 0;
const { now } = performance;
performance.now = () => now.call(performance) + passed;

/** How long a stream is open before its interruption is a gap, in milliseconds, and a little longer. */
const BEGUN_AFTER = 5100;

/** Returns a leader that is played by the test, and a tab that follows it and has no cursor. */
async function followedWithoutCursor(connect, options, state = "open") {
  const isTopics = connect === connectTopics;
  const url = new URL(isTopics ? "/topics" : "/channel", SERVER);
  const key = `without a cursor ${++count}`;
  const fake = new FakeTab(isTopics ? "tower-push topics" : "tower-push", url.href, key);
  await fake.lead();
  const { cursors, streams, fetch } = eventStreams();
  const push = connect(url, { shared: key, lease: LEASE, transports: ["sse"], fetch, ...options });
  closers.push(() => push.close());
  const items = [];
  push.on("event", ({ data }) => items.push(data));
  push.on("gap", ({ reason }) => items.push(reason));
  await fake.hears(({ kind }) => kind === "ping");
  fake.post(leader(1, 0, { topics: ["a"], begun: ["a"], state }));
  await until(() => push.state === state);
  return { fake, push, items, cursors, streams };
}

for (const [name, connect, options] of [
  ["/channel", connectShared, {}],
  ["/topics", connectTopics, { topics: ["a"] }],
]) {
  const streamOf = (term, state) => leader(term, 0, { topics: ["a"], begun: ["a"], from: position(term - 1, 0), state });
  const isOpen = (push) => next(push, "state", (state) => state === "open");

  test(`${name}: a tab without a cursor gets a gap when the stream of the next leader is open`, async () => {
    const { fake, push, items } = await followedWithoutCursor(connect, options);
    passed += BEGUN_AFTER;
    fake.post(streamOf(2, "connecting"));
    await next(push, "state", (state) => state === "connecting");
    assert.deepEqual(items, []);
    fake.post(report(2, 1, undefined, "state", "open"));
    fake.post(report(2, 2, "e1", ...event("e1")));
    await next(push, "event");
    assert.deepEqual(items, ["unknown", "e1"]);
    push.close();
  });

  test(`${name}: a tab that has just begun without a cursor begins anew with the next leader`, async () => {
    const { fake, push, items } = await followedWithoutCursor(connect, options);
    fake.post(streamOf(2, "connecting"));
    const reopened = isOpen(push);
    fake.post(report(2, 1, undefined, "state", "open"));
    await reopened;
    fake.post(report(2, 2, "e1", ...event("e1")));
    await next(push, "event");
    assert.deepEqual(items, ["e1"]);
    push.close();
  });

  test(`${name}: a tab gets no gap if the stream of the leader before was never open`, async () => {
    const { fake, push, items } = await followedWithoutCursor(connect, options, "waiting");
    passed += BEGUN_AFTER;
    fake.post(streamOf(2, "connecting"));
    const opened = isOpen(push);
    fake.post(report(2, 1, undefined, "state", "open"));
    await opened;
    fake.post(report(2, 2, "e1", ...event("e1")));
    await next(push, "event");
    assert.deepEqual(items, ["e1"]);
    push.close();
  });

  test(`${name}: a tab gets a gap if the stream of the leader before was lost after a while`, async () => {
    const { fake, push, items } = await followedWithoutCursor(connect, options, "waiting");
    for (const [sequence, state] of [[1, "open"], [2, "waiting"]]) {
      fake.post({ ...report(1, sequence, undefined, "state", state), begun: ["a"] });
      await next(push, "state", (reached) => reached === state);
      passed += BEGUN_AFTER;
    }
    fake.post(streamOf(2, "connecting"));
    fake.post(report(2, 1, undefined, "state", "open"));
    fake.post(report(2, 2, "e1", ...event("e1")));
    await next(push, "event");
    assert.deepEqual(items, ["unknown", "e1"]);
    push.close();
  });

  test(`${name}: a tab without a cursor that misses reports gets a gap`, async () => {
    const { fake, push, items, cursors } = await followedWithoutCursor(connect, options);
    const gap = next(push, "gap");
    fake.post(report(1, 2, undefined, "event", { type: "message", data: "missed or not", topic: "a" }));
    await gap;
    fake.post(report(1, 3, "e1", ...event("e1")));
    await next(push, "event", ({ id }) => id === "e1");
    assert.deepEqual(items.filter((item) => item !== "missed or not"), ["unknown", "e1"]);
    assert.deepEqual(cursors, []);
    push.close();
  });

  test(`${name}: a tab without a cursor that becomes the leader gets a gap when its stream is open`, async () => {
    const key = `heir ${++count}`;
    const { cursors, streams, fetch } = eventStreams();
    const open = () => connect(new URL(name, SERVER), { shared: key, lease: LEASE, transports: ["sse"], fetch, ...options });
    const tabs = [open(), open()];
    await Promise.all(tabs.map(isOpen));
    passed += BEGUN_AFTER;
    const items = [];
    tabs[1].on("state", (state) => items.push(state));
    tabs[1].on("gap", ({ reason }) => items.push(reason));
    tabs[0].close();
    await next(tabs[1], "gap");
    assert.deepEqual(items, ["connecting", "open", "unknown"]);
    streams[1].write("topic: a\nid: 1\ndata: 1\n\n");
    await next(tabs[1], "event");
    assert.deepEqual(items, ["connecting", "open", "unknown"]);
    assert.deepEqual(cursors, [null, null]);
    tabs[1].close();
  });
}

test("a new leader resumes after the cursor of a tab, although another tab without one is behind", async () => {
  const key = `behind ${++count}`;
  const { cursors, streams, fetch } = eventStreams();
  const push = connectShared(new URL("/channel", SERVER), { shared: key, lease: LEASE, transports: ["sse"], fetch });
  const fake = new FakeTab("tower-push", new URL("/channel", SERVER).href, key);
  await fake.hears(({ kind }) => kind === "census");
  fake.post({ kind: "count", position: position(1, 5), cursor: "e5" });
  fake.post({ kind: "count", position: position(1, 3), cursor: undefined });
  await until(() => streams.length === 1);
  assert.deepEqual(cursors, ["e5"]);
  push.close();
});

// The requests of a leader, to a hub that the test plays.

/** A hub that says nothing by itself. */
class FakeHub {
  /** For each request, its query and its socket. */
  requests = [];
  commands = [];

  static async start() {
    const hub = new FakeHub();
    // A tab that begins later reads by polls that no topic has an event.
    const server = createServer((_, response) => response.writeHead(200, { "content-type": "application/json" }).end("[]"));
    closers.push(() => server.close());
    server.listen(0, "127.0.0.1");
    new WebSocketServer({ server }).on("connection", (socket, { url }) => {
      hub.requests.push({ query: new URL(url, "http://hub").searchParams, socket });
      socket.on("message", (message) => hub.commands.push(JSON.parse(message)));
    });
    await once(server, "listening");
    hub.url = new URL(`http://127.0.0.1:${server.address().port}/`);
    return hub;
  }

  open(key, topics, since) {
    const options = { shared: key, lease: LEASE, topics, since, transports: ["websocket"], WebSocket, minDelay: 1, maxDelay: 5, openTimeout: 60_000 };
    const push = connectTopics(this.url, options);
    closers.push(() => push.close());
    return push;
  }

  send(record) {
    this.requests.at(-1).socket.send(JSON.stringify(record));
  }

  /** What request number `index` asks for: the cursor, the topics, and those that begin anew. */
  async asked(index) {
    await until(() => this.requests.length > index);
    const { query } = this.requests[index];
    return [query.get("last_event_id"), query.getAll("topic").sort(), query.getAll("fresh")];
  }
}

test("a topic that the stream has not begun is new in the next leader's stream, although the cursor has moved", async () => {
  const hub = await FakeHub.start();
  const leader = hub.open("begun", ["a"]);
  await hub.asked(0);
  hub.send({ id: "1", topic: "a", data: 1 });
  await next(leader, "event");
  const follower = hub.open("begun", ["a", "b"]);
  await until(() => hub.commands.some(({ subscribe }) => subscribe?.topic === "b"));
  // This event was on its way before the server got the command.
  const moved = next(follower, "event");
  hub.send({ id: "2", topic: "a", data: 2 });
  await moved;
  leader.close();
  assert.deepEqual(await hub.asked(1), ["2", ["a", "b"], ["b"]]);
  follower.close();
});

test("a topic that has begun goes on after the cursor in the next leader's stream", async () => {
  const hub = await FakeHub.start();
  const leader = hub.open("goes on", ["a"]);
  await hub.asked(0);
  hub.send({ id: "1", topic: "a", data: 1 });
  await next(leader, "event");
  const follower = hub.open("goes on", ["a", "b"]);
  await until(() => hub.commands.length);
  hub.send({ topic: "b", event: "hub.subscribed", data: { ref: hub.commands[0].ref } });
  // The topic has no event, and the cursor is valid for it.
  const moved = next(follower, "cursor", (cursor) => cursor === "2");
  hub.send({ id: "2" });
  await moved;
  leader.close();
  assert.deepEqual(await hub.asked(1), ["2", ["a", "b"], []]);
  follower.close();
});

test("a quiet topic goes on after the cursor in the next leader's stream", async (context) => {
  context.after(speedUpTicks());
  const hub = await FakeHub.start();
  const leader = hub.open("quiet", ["a"]);
  await hub.asked(0);
  hub.send({ id: "1", topic: "a", data: 1 });
  await next(leader, "event");
  const follower = hub.open("quiet", ["a", "b"]);
  await until(() => hub.commands.length);
  hub.send({ topic: "b", event: "hub.subscribed", data: { ref: hub.commands[0].ref } });
  // Neither an event nor a cursor follows.
  await wait(800);
  leader.close();
  assert.deepEqual(await hub.asked(1), ["1", ["a", "b"], []]);
  follower.close();
});

test("a topic that the stream has not begun is new in a connection that replaces it", async () => {
  const hub = await FakeHub.start();
  const leader = hub.open("replaced", ["a"]);
  await hub.asked(0);
  hub.send({ id: "1", topic: "a", data: 1 });
  await next(leader, "event");
  leader.subscribe("b");
  await until(() => hub.commands.length);
  // A topic after a cursor needs another connection.
  const late = hub.open("replaced", ["c"], "0");
  assert.deepEqual(await hub.asked(1), ["1", ["a", "b", "c"], ["b"]]);
  leader.close();
  late.close();
});

test("SSE: the next leader's first event is passed on, although the server sends the cursor of the request as its id", async () => {
  const { cursors, streams, fetch } = eventStreams();
  const tab = () => topicTab("typing", ["a"], { transports: ["sse"], fetch, minDelay: 1, maxDelay: 5 });
  const leader = tab();
  const follower = tab();
  const seen = [];
  follower.on("event", ({ data }) => seen.push(data));
  await Promise.all([leader, follower].map((push) => next(push, "state", (state) => state === "open")));
  const first = next(follower, "event");
  streams[0].write("topic: a\nid: 1\ndata: 1\n\n");
  await first;
  leader.close();
  await until(() => streams.length === 2);
  streams[1].write("topic: a\nid: 1\nevent_id:\ndata: 2\n\ntopic: a\nid: 2\ndata: 3\n\n");
  await until(() => seen.includes(3));
  assert.deepEqual(seen, [1, 2, 3]);
  assert.deepEqual(cursors, [null, "1"]);
  follower.close();
});

test("a leader whose topics all begin anew sends no cursor", async () => {
  const hub = await FakeHub.start();
  const leader = hub.open("no cursor", ["a"]);
  await hub.asked(0);
  hub.send({ id: "1", topic: "a", data: 1 });
  await next(leader, "event");
  const follower = hub.open("no cursor", ["a"]);
  await next(follower, "cursor");
  follower.subscribe("b");
  follower.unsubscribe("a");
  await until(() => hub.commands.length);
  leader.close();
  assert.deepEqual(await hub.asked(1), [null, ["b"], []]);
  follower.close();
});
