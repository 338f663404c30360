// Connections to topics of a hub, which change while the connection is open.

import assert from "node:assert/strict";
import { test } from "node:test";
import { EventSource } from "eventsource";
import { WebSocket } from "ws";
import { eventSource } from "../../../clients/js/dist/event-source.js";
import { connect } from "../../../clients/js/dist/topics.js";
import { serve, serveSockets, sse } from "./servers.mjs";
import { CuttingProxy, SERVER, inParallel, namesOf, next, range, speedUpTicks, until, wait } from "./support.mjs";

/** How topics change: by commands, or by a new request. */
const MODES = [
  ["WebSocket with commands", { transports: ["websocket"] }],
  ["WebSocket without commands", { transports: ["websocket"], commands: false }],
  ["SSE", { transports: ["sse"] }],
  ["long-polling", { transports: ["long-poll"] }],
];

const open = (topics, options, server = SERVER) =>
  connect(new URL(new URL(server).pathname === "/" ? "/topics" : "", server), { WebSocket, minDelay: 1, maxDelay: 20, topics, ...options });

async function publish(topic, text, path = "/topics") {
  const response = await fetch(new URL(`${path}/${topic}`, SERVER), { method: "POST", body: String(text) });
  return response.text();
}

/** The events of a connection, as `topic data`, from now on. */
class Seen {
  texts = [];
  #waiters = new Map();

  constructor(push) {
    push.on("event", ({ topic, data }) => {
      const text = `${topic} ${data}`;
      this.texts.push(text);
      this.#waiters.get(text)?.resolve();
    });
  }

  /** Resolves when the text is among the events. */
  has(text) {
    if (this.texts.includes(text)) return;
    const waiter = this.#waiters.get(text) ?? {};
    this.#waiters.set(text, waiter);
    return (waiter.promise ??= new Promise((resolve) => (waiter.resolve = resolve)));
  }

  /** The data of one topic. */
  of(topic) {
    return this.texts.filter((text) => text.startsWith(`${topic} `)).map((text) => Number(text.split(" ")[1]));
  }
}

for (const [mode, options] of MODES) {
  test(`${mode}: a further topic begins with its last value, and nothing is lost or repeated`, async () => {
    const [a, b] = namesOf("a", "b");
    await publish(b, 1);
    await publish(b, 2);
    await publish(a, 1);
    const push = open([a], options);
    const seen = new Seen(push);
    await seen.has(`${a} 1`);
    push.subscribe(b, b);
    assert.deepEqual(push.topics, [a, b]);
    for (let n = 3; n <= 12; n++) await Promise.all([publish(a, n), publish(b, n)]);
    await Promise.all([seen.has(`${a} 12`), seen.has(`${b} 12`)]);
    assert.deepEqual(seen.of(a), [1, ...range(3, 12)]);
    const ofB = seen.of(b);
    assert.deepEqual(ofB, range(ofB[0], 12), "without a hole, from the last value at the time of the subscription");
    push.close();
  });

  test(`${mode}: a quiet further topic begins with its last value`, async () => {
    const [a, b] = namesOf("a", "b");
    for (const n of [1, 2]) await publish(b, n);
    await publish(a, 1);
    const push = open([a], options);
    const seen = new Seen(push);
    await seen.has(`${a} 1`);
    const cursors = [];
    push.on("cursor", (cursor) => cursors.push(cursor));
    push.subscribe(b);
    await seen.has(`${b} 2`);
    await publish(a, 2);
    await seen.has(`${a} 2`);
    assert.deepEqual(seen.texts, [`${a} 1`, `${b} 2`, `${a} 2`]);
    push.close();
  });

  test(`${mode}: a removed topic is silent, and begins anew when it is added again`, async () => {
    const [a, b] = namesOf("a", "b");
    await publish(b, 1);
    const push = open([a, b], options);
    const seen = new Seen(push);
    await seen.has(`${b} 1`);
    const removed = options.transports[0] === "websocket" && options.commands !== false && next(push, "hub.unsubscribed");
    push.unsubscribe(b);
    await removed;
    for (const n of [2, 3]) await publish(b, n);
    await publish(a, 1);
    await seen.has(`${a} 1`);
    assert.deepEqual(push.topics, [a]);
    push.subscribe(b);
    await seen.has(`${b} 3`);
    assert.deepEqual(seen.texts, [`${b} 1`, `${a} 1`, `${b} 3`]);
    push.unsubscribe(b);
    push.subscribe(b);
    while (seen.texts.length < 4) await next(push, "event");
    assert.deepEqual(seen.of(b), [1, 3, 3], "the last value comes again");
    push.close();
  });

  test(`${mode}: a pattern gets the topics that match, also later ones`, async () => {
    const [a, prefix] = namesOf("a", "prefix");
    for (const suffix of ["1", "1-x"]) await publish(`${prefix}-${suffix}`, 1);
    const push = open([], { ...options, patterns: [{ prefix: `${prefix}-`, suffix: "-x" }] });
    const seen = new Seen(push);
    await seen.has(`${prefix}-1-x 1`);
    push.subscribe(a);
    for (const suffix of ["2", "2-x"]) await publish(`${prefix}-${suffix}`, 2);
    await publish(a, 3);
    await Promise.all([seen.has(`${prefix}-2-x 2`), seen.has(`${a} 3`)]);
    assert.deepEqual(seen.texts.sort(), [`${a} 3`, `${prefix}-1-x 1`, `${prefix}-2-x 2`]);
    push.unsubscribe(a);
    assert.deepEqual(push.topics, []);
    await publish(`${prefix}-3-x`, 4);
    await seen.has(`${prefix}-3-x 4`);
    push.close();
    const all = open([], { ...options, patterns: [{ prefix: `${prefix}-1` }] });
    const seenByAll = new Seen(all);
    await Promise.all([seenByAll.has(`${prefix}-1 1`), seenByAll.has(`${prefix}-1-x 1`)]);
    all.close();
  });

  test(`${mode}: a refused topic is reported and given up`, async () => {
    const [a, hidden] = namesOf("a", "hidden");
    await publish(a, 1);
    const push = open([a], options);
    const seen = new Seen(push);
    await seen.has(`${a} 1`);
    const refused = next(push, "hub.refused");
    push.subscribe(hidden);
    const { topic, data } = await refused;
    assert.deepEqual([topic, data.status], [hidden, 403]);
    assert.deepEqual(push.topics, [a]);
    await publish(a, 2);
    await seen.has(`${a} 2`);
    assert.deepEqual(seen.texts, [`${a} 1`, `${a} 2`], "answers of the hub are no events");
    push.close();
  });

  test(`${mode}: a further topic that is cut after its first event misses nothing`, async () => {
    const [a, b] = namesOf("a", "b");
    await Promise.all([publish(a, 1), publish(b, 1)]);
    const proxy = await CuttingProxy.to(SERVER);
    const push = open([a], options, proxy.url("/"));
    const seen = new Seen(push);
    await seen.has(`${a} 1`);
    push.subscribe(b);
    await seen.has(`${b} 1`);
    proxy.refused = /HTTP/;
    proxy.cut();
    for (const n of [2, 3]) await publish(b, n);
    proxy.refused = /$^/;
    await seen.has(`${b} 3`);
    assert.deepEqual(seen.of(b), [1, 2, 3]);
    push.close();
    proxy.close();
  });

  test(`${mode}: a further topic that has been quiet misses nothing when the connection is cut`, async (context) => {
    context.after(speedUpTicks());
    const [a, b] = namesOf("a", "b");
    const proxy = await CuttingProxy.to(SERVER);
    const push = open([a], { ...options, openTimeout: 60_000 }, proxy.url("/topics-now"));
    const seen = new Seen(push);
    if (push.cursor == null) await next(push, "cursor");
    // The time before the subscription does not count.
    await wait(500);
    const subscribed = options.transports[0] === "websocket" && options.commands !== false && next(push, "hub.subscribed");
    push.subscribe(b);
    await subscribed;
    await wait(1000);
    proxy.refused = /HTTP/;
    proxy.cut();
    for (const n of [1, 2]) await publish(b, n, "/topics-now");
    proxy.refused = /$^/;
    await seen.has(`${b} 2`);
    assert.deepEqual(seen.of(b), [1, 2]);
    push.close();
    proxy.close();
  });

  test(`${mode}: topics change while the connection is cut again and again`, async () => {
    const [a, b, c] = namesOf("a", "b", "c");
    await Promise.all([a, b, c].map((topic) => publish(topic, 0)));
    const proxy = await CuttingProxy.to(SERVER);
    const push = open([a], options, proxy.url("/"));
    const seen = new Seen(push);
    await seen.has(`${a} 0`);
    push.subscribe(b);
    for (let n = 1; n <= 60; n++) {
      await Promise.all([publish(a, n), publish(b, n)]);
      if (n % 3 === 0) push[n % 2 ? "subscribe" : "unsubscribe"](c);
      if (n % 4 === 0) {
        proxy.budgets = [200 + n * 13, 300 + n * 7];
        proxy.cut();
      }
    }
    proxy.budgets = [];
    await Promise.all([seen.has(`${a} 60`), seen.has(`${b} 60`)]);
    assert.deepEqual(seen.of(a), range(0, 60));
    const ofB = seen.of(b).sort((one, other) => one - other);
    assert.deepEqual(ofB, range(ofB[0], 60));
    push.close();
    proxy.close();
  });
}

/** Answers requests with these event streams, one after another, and then with 204. Returns the requests' queries. */
function streams(...bodies) {
  const queries = [];
  const fetch = async (url) => {
    queries.push(new URL(url).searchParams);
    const body = bodies.shift();
    return body == null ? new Response(null, { status: 204 }) : new Response(body, { headers: { "content-type": "text/event-stream" } });
  };
  return { queries, options: { transports: ["sse"], fetch } };
}

test("SSE: first events that are cut anywhere are not lost, and those of other topics not repeated", async () => {
  const path = "/topics-last-3";
  await inParallel(8, range(0, 40), async (step) => {
    const [a, b, c, other] = namesOf("a", "b", "c", "other");
    for (const topic of [c, b, a]) for (const n of [1, 2, 3]) await publish(topic, n, path);
    await publish(other, 1, path);
    /** How many bytes the next response has before its end. */
    let budget = Infinity;
    const fetch = async (url, init) => {
      const response = await globalThis.fetch(url, init);
      let left = budget;
      budget = Infinity;
      const cut = new TransformStream({
        transform(chunk, controller) {
          controller.enqueue(chunk.subarray(0, left));
          if ((left -= chunk.length) <= 0) controller.terminate();
        },
      });
      return new Response(response.body.pipeThrough(cut), response);
    };
    const push = open([a], { transports: ["sse"], fetch }, new URL(path, SERVER));
    const seen = new Seen(push);
    await seen.has(`${a} 3`);
    push.subscribe(b);
    // The last of the first events carries the cursor of the hub in place of its id.
    await seen.has(`${b} 3`);
    budget = step * 10;
    // The first events of this topic are older than those of the others, which the server repeats after a cut.
    push.subscribe(c);
    await seen.has(`${c} 3`);
    for (const topic of [a, b, c]) await publish(topic, 4, path);
    for (const topic of [a, b, c]) {
      await seen.has(`${topic} 4`);
      assert.deepEqual(seen.of(topic), range(1, 4), `cut after ${step * 10} bytes`);
    }
    push.close();
  });
});

test("SSE: an answer, or a list of members, with the cursor of the request does not move new topics on", async () => {
  const { queries, options } = streams(
    "topic: a\nid: 1\ndata: 1\n\n",
    'event: hub.refused\ntopic: c\nid: 1\nevent_id:\ndata: {"status":403}\n\n',
    'event: hub.members\ntopic: b\nid: 1\nevent_id:\ndata: {"members":[]}\n\n',
    "topic: b\nid: 1\ndata: 1\n\n",
  );
  const push = open(["a"], options);
  const finished = next(push, "finished");
  await next(push, "event");
  push.subscribe("b", "c");
  await finished;
  assert.deepEqual(queries.map((query) => query.getAll("topic")), [["a"], ["a", "b", "c"], ["a", "b"], ["a", "b"], ["a", "b"]]);
  assert.deepEqual(queries.map((query) => query.getAll("fresh")), [[], ["b", "c"], ["b"], ["b"], []]);
});

test("SSE: an event without an id that carries a cursor is no repetition, and nothing is one of it", async () => {
  const { options } = streams(
    "topic: a\nid: 1\ndata: 1\n\n",
    "topic: a\nid: 1\nevent_id:\ndata: 2\n\n",
    // The cursor has moved without an event.
    "topic: a\nid: 2\nevent_id:\ndata: 3\n\ntopic: a\nid: 2\ndata: 4\n\ntopic: a\nid: 2\ndata: 5\n\n",
  );
  const push = open(["a"], options);
  const events = [];
  for await (const { id, data } of push) events.push([id, data]);
  assert.deepEqual(events, [["1", 1], [undefined, 2], [undefined, 3], ["2", 4]]);
  assert.equal(push.cursor, "2");
});

test("event-source: events without ids are no repetitions of the last event that has one", async () => {
  const end = 'event: finished\ndata: {"finished":true}\n\n';
  const { url } = await serve(sse(`id: 1\ndata: 1\n\ndata: 2\n\ndata: 3\n\nid: 2\ndata: 4\n\n${end}`));
  for (const [since, ids] of [[undefined, ["1", undefined, undefined, "2"]], ["1", [undefined, undefined, undefined, "2"]]]) {
    const push = open(["a"], { transports: [eventSource()], EventSource, since }, url);
    const events = [];
    for await (const event of push) events.push(event);
    assert.deepEqual(events.map(({ data }) => data), [1, 2, 3, 4]);
    assert.deepEqual(events.map(({ id }) => id), ids);
    assert.equal(push.cursor, "2");
  }
});

test("an event that comes again for a further topic, too, is passed on for this topic", async () => {
  const { options } = streams(
    "topic: a\nid: 5\ndata: 1\n\n",
    // The stream is cut after the first of the older events of b.
    "topic: b\nid: 3\ndata: 2\n\n",
    "topic: a\ntopics: a\tb\nid: 5\ndata: 1\n\ntopic: a\ntopics: a\tb\nid: 6\ndata: 3\n\ntopic: b\nid: 5\ndata: 1\n\n",
  );
  const push = open(["a"], options);
  const seen = [];
  push.on("event", ({ id, topic, topics }) => seen.push([id, topic, topics]));
  const finished = next(push, "finished");
  await next(push, "event");
  push.subscribe("b");
  await finished;
  assert.deepEqual(seen, [["5", "a", undefined], ["3", "b", undefined], ["5", "b", undefined], ["6", "a", ["a", "b"]]]);
});

test("a topic that is removed and added again begins with the answer, also if events of it are under way", async () => {
  const url = await serveSockets((socket) => {
    const send = (...records) => records.forEach((record) => socket.send(JSON.stringify(record)));
    const events = [1, 2, 3].map((n) => ({ id: `${n}`, topic: "b", data: n }));
    send(...events.slice(0, 2));
    socket.on("message", (text) => {
      const { subscribe, ref } = JSON.parse(text);
      // The server has sent the events before it gets the command.
      const sent = [{ id: "3", topic: "b", topics: ["b", "a"], data: 3 }, { topic: "b", data: "without an id" }];
      if (!subscribe) send(...sent, { topic: "b", event: "hub.unsubscribed", data: { ref } });
      else send({ topic: "b", event: "hub.subscribed", data: { ref } }, ...events, { id: "4", topic: "b", data: 4 }, { end: { finished: true } });
    });
  }, { handleProtocols: () => "json.tower-push" });
  const push = open(["a", "b"], { transports: ["websocket"] }, url);
  const seen = new Seen(push);
  const finished = next(push, "finished");
  await seen.has("b 2");
  push.unsubscribe("b");
  push.subscribe("b");
  await finished;
  assert.deepEqual(seen.texts, ["b 1", "b 2", "a 3", "b 1", "b 2", "b 3", "b 4"]);
});

test("answers that make no sense change nothing", async () => {
  const answers = [
    "event: hub.refused\ndata: null\n\n",
    "event: hub.refused\ntopic: b\ndata: text\n\n",
    'event: hub.refused\ntopic: a\ndata: {"status":403,"ref":7}\n\n',
    "event: hub.published\ndata: [1]\n\n",
    'event: hub.subscribed\ntopic: a\ndata: {"ref":{}}\n\n',
    'event: hub.unsubscribed\ntopic: a\ndata: {"ref":-1}\n\n',
    "event: hub.members\ndata: 7\n\n",
  ];
  const { options } = streams(`${answers.join("")}topic: a\nid: 1\ndata: 1\n\n`);
  const push = open(["a"], options);
  const types = [];
  for await (const { type } of push) types.push(type);
  assert.deepEqual(types, ["hub.members", "message"]);
  assert.deepEqual(push.topics, ["a"]);
});

test("a loop gets each event once, and no answers", async () => {
  const [a, b] = namesOf("a", "b");
  await publish(a, 1);
  await publish(b, 2);
  const push = open([a], { transports: ["websocket"] });
  const texts = [];
  for await (const { topic, data } of push) {
    texts.push(`${topic} ${data}`);
    if (texts.length === 1) push.subscribe(b);
    if (texts.length === 2) await publish(a, 3);
    if (texts.length === 3) break;
  }
  assert.deepEqual(texts, [`${a} 1`, `${b} 2`, `${a} 3`]);
  push.close();
});

test("more commands than the server accepts in a second are repeated", async () => {
  const [a, ...others] = namesOf(...Array.from({ length: 50 }, () => "many"));
  await Promise.all([a, ...others].map((topic) => publish(topic, 1)));
  const push = open([a], { transports: ["websocket"] });
  const seen = new Seen(push);
  await seen.has(`${a} 1`);
  let refusals = 0;
  push.on("hub.refused", ({ data }) => data.status === 429 && refusals++);
  push.subscribe(...others);
  for (const topic of others) await seen.has(`${topic} 1`);
  assert.ok(refusals > 0);
  assert.deepEqual([...seen.texts].sort(), [a, ...others].map((topic) => `${topic} 1`).sort());
  push.close();
});

test("each publication arrives once, although the connection is cut", async () => {
  const [room] = namesOf("room");
  const proxy = await CuttingProxy.to(SERVER);
  const reader = open([room], { transports: ["sse"] });
  const seen = new Seen(reader);
  await next(reader, "cursor");
  const push = open([room], { transports: ["websocket"] }, proxy.url("/"));
  const ids = [];
  for (let n = 1; n <= 15; n++) {
    const published = push.publish(room, n);
    if (n % 3 === 0) setTimeout(() => proxy.cut(), n % 5);
    ids.push(await published);
  }
  assert.equal(new Set(ids).size, 15);
  await seen.has(`${room} 15`);
  assert.deepEqual(seen.of(room), range(1, 15));
  reader.close();
  push.close();
  proxy.close();
});

test("a publication has a type, a key and no echo", async () => {
  const [room] = namesOf("room");
  const push = open([room], { transports: ["websocket"] });
  const reader = open([room], { transports: ["sse"] });
  await next(reader, "cursor");
  const own = new Seen(push);
  const event = next(reader, "chat");
  const first = await push.publish(room, { text: "é" }, { event: "chat", key: "k", echo: false });
  assert.equal(await push.publish(room, { text: "é" }, { event: "chat", key: "k", echo: false }), first, "once for each key");
  const { topic, data, id } = await event;
  assert.deepEqual({ topic, data, id }, { topic: room, data: { text: "é" }, id: first });
  await push.publish(room, 2);
  await own.has(`${room} 2`);
  assert.deepEqual(own.texts, [`${room} 2`]);
  push.close();
  reader.close();
});

test("a publication that cannot be made is rejected", async () => {
  const [a, room] = namesOf("a", "room");
  const socket = open([a], { transports: ["websocket"] });
  await assert.rejects(socket.publish(a, 1), (error) => error.status === 403);
  const pending = open([a], { transports: ["websocket"] });
  const publication = pending.publish(room, 1);
  pending.close();
  await assert.rejects(publication, /closed/);
  await assert.rejects(pending.publish(room, 1), /closed/);
  const cycle = {};
  cycle.self = cycle;
  const early = open([room], { transports: ["websocket"] });
  for (const noJson of [cycle, () => {}, 1n]) await assert.rejects(early.publish(room, noJson));
  assert.ok(await early.publish(room, 1));
  early.close();
  const stream = open([a], { transports: ["sse"] });
  await assert.rejects(stream.publish(room, 1), /no WebSocket/);
  stream.close();
  const withoutCommands = open([a], { transports: ["websocket"], commands: false });
  await assert.rejects(withoutCommands.publish(room, 1), /no WebSocket/);
  withoutCommands.close();
  socket.close();
});

/** The cursor, and the topics that are new, of each request. */
const resumptions = (requests) =>
  requests.map(({ url, headers }) => [headers["last-event-id"] ?? null, new URL(url, SERVER).searchParams.getAll("fresh")]);

test("long-polling: a further topic whose poll was not answered stays new", async (context) => {
  context.after(speedUpTicks());
  const poll = (...events) => (_, response) => response.setHeader("last-event-id", "9").setHeader("content-type", "application/json").end(JSON.stringify(events));
  const polls = [];
  const hold = (request, response) => polls.push({ request, response });
  const event = (id, topic) => ({ id, topic, data: id });
  const { url, requests } = await serve(poll(event("9", "a")), hold, hold, poll(event("3", "b")), hold);
  const push = open(["a"], { transports: ["long-poll"] }, url);
  await until(() => polls.length === 1);
  // The connection has been open for some time, and stays open during the next poll.
  await wait(240);
  push.subscribe("b");
  await until(() => polls.length === 2);
  await wait(500);
  const history = next(push, "event");
  polls[1].request.socket.destroy();
  assert.equal((await history).data, 3);
  assert.deepEqual(resumptions(requests).slice(0, 4), [[null, []], ["9", []], ["9", ["b"]], ["9", ["b"]]]);
  push.close();
});

test("SSE: a further topic stays new while the client does not read its stream", async (context) => {
  context.after(speedUpTicks());
  const streams = [];
  const { url, requests } = await serve((_, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    streams.push(response);
    response.write(":\n");
  });
  const push = open(["a"], { transports: ["sse"], maxBuffered: 4 }, url);
  await until(() => streams.length === 1);
  const loop = push[Symbol.asyncIterator]();
  const first = loop.next();
  streams[0].write("topic: a\nid: 9\ndata: 0\n\n");
  await first;
  push.subscribe("b");
  await until(() => streams.length === 2);
  for (const n of range(1, 4)) streams[1].write(`topic: a\nevent: typing\nevent_id\ndata: ${n}\n\n`);
  await next(push, "event", ({ data }) => data === 4);
  // Not read before the server ends the stream.
  await wait(100);
  streams[1].write("topic: b\nid: 3\ndata: 5\n\n");
  await wait(600);
  streams[1].destroy();
  await wait(100);
  const items = [];
  while (items.length < 4) items.push((await loop.next()).value.data);
  await until(() => streams.length === 3);
  assert.deepEqual(resumptions(requests), [[null, []], ["9", ["b"]], ["9", ["b"]]]);
  streams[2].write("topic: b\nid: 3\ndata: 5\n\n");
  items.push((await loop.next()).value.data);
  assert.deepEqual(items, range(1, 5));
  push.close();
});

test("only a WebSocket may have no topic", async () => {
  assert.throws(() => open([], {}), TypeError);
  const [a, b] = namesOf("a", "b");
  const stream = open([a], { transports: ["sse"] });
  assert.throws(() => stream.unsubscribe(a), TypeError);
  assert.deepEqual(stream.topics, [a]);
  stream.close();
  await publish(b, 1);
  const socket = open([], { transports: ["websocket"] });
  const seen = new Seen(socket);
  await next(socket, "state", (state) => state === "open");
  socket.subscribe(b);
  await seen.has(`${b} 1`);
  socket.unsubscribe(b);
  assert.deepEqual(socket.topics, []);
  socket.close();
});

test("a new connection does not lift the bound of a slow loop", async () => {
  const [a, b] = namesOf("a", "b");
  const push = open([a, b], { transports: ["sse"], maxBuffered: 4 });
  const loop = push[Symbol.asyncIterator]();
  const seen = new Seen(push);
  const first = loop.next();
  await next(push, "cursor");
  for (let n = 1; n <= 40; n++) {
    await publish(a, n);
    // Each new connection may read one chunk.
    if (n === 20) push.unsubscribe(b);
  }
  assert.ok(seen.texts.length < 40, `${seen.texts.length} events were read`);
  const items = [(await first).value];
  while (items.length < 40) items.push((await loop.next()).value);
  assert.deepEqual(items.map(({ data }) => data), range(1, 40));
  push.close();
});
