// What each option does that no other file tests, and what the client remembers.

import assert from "node:assert/strict";
import { test } from "node:test";
import { connect as connectTopics } from "../../../clients/js/dist/topics.js";
import { finished, read, respond, serve, serveSockets, sse } from "./servers.mjs";
import { next, open, readAll, skipDelays } from "./support.mjs";

test("a refused transport leads to the next one, and to the end if there is none", async () => {
  const batch = respond(200, { "content-type": "application/json" }, '[{"id":"1","data":"x"},{"end":{"finished":true}}]');
  const isPoll = (request) => request.url.includes("long-poll");
  const { url } = await serve((request, response) => (isPoll(request) ? batch : respond(405))(request, response));
  const { items, errors } = await read(url, { transports: ["sse", "long-poll"] });
  assert.deepEqual(items.map(({ data }) => data), ["x"]);
  assert.deepEqual(errors.map((error) => [error.status, error.final]), [[405, false]]);
  for (const transports of [["sse"], ["long-poll"], ["websocket", "sse", "long-poll"]]) {
    const alone = await read((await serve(respond(405))).url, { transports });
    const error = alone.errors.at(-1);
    assert.deepEqual([error.status, error.final], [405, true], `${transports}`);
  }
});

test("a source that has begun ends if the server refuses all transports, but not if a WebSocket has failed", async () => {
  const event = sse("id: 1\ndata: x\n\n");
  const ended = await read((await serve(event, respond(405))).url, { transports: ["sse"] });
  assert.deepEqual([ended.errors.at(-1).status, ended.errors.at(-1).final], [405, true]);
  // The server restarts, and has only WebSockets afterwards.
  const { url } = await serve(event, respond(405), finished);
  const { items, errors } = await read(url, { transports: ["websocket", "sse"] });
  assert.deepEqual(items.map(({ data }) => data), ["x"]);
  assert.ok(errors.every((error) => !error.final), `${errors}`);
});

test("a WebSocket that fails is tried again if the server answers all other requests with 426", async () => {
  let isReady = false;
  const { url } = await serve((request, response) => (isReady ? finished : respond(426))(request, response));
  const push = open(url, { transports: ["websocket", "sse", "long-poll"] });
  await next(push, "state", (state) => state === "waiting");
  isReady = true;
  await next(push, "finished");
  const { errors } = await read((await serve(respond(426))).url, { transports: ["sse", "long-poll"] });
  assert.deepEqual([errors.at(-1).status, errors.at(-1).final], [426, true]);
});

test("a final error that nobody would learn of is on the console", async () => {
  const { error: original } = console;
  const shown = [];
  console.error = (error) => shown.push(error.status);
  try {
    const { url } = await serve(respond(403));
    const options = { transports: ["sse"] };
    const close = (push) => next(push, "state", (state) => state === "closed");
    await close(open(url, options));
    assert.deepEqual(shown.splice(0), [403]);

    const heard = open(url, options);
    heard.on("error", () => {});
    await close(heard);
    await assert.rejects(readAll(open(url, options)), { status: 403 });
    open(url, options).close();
    assert.deepEqual(shown, []);

    // A listener that was removed hears nothing.
    const removed = open(url, options);
    removed.on("error", () => {})();
    await close(removed);
    assert.deepEqual(shown, [403]);
  } finally {
    console.error = original;
  }
});

test("a loop gets what arrives after it has begun", async () => {
  let response;
  const { url } = await serve((_, opened) => sse("id: 1\ndata: early\n\n")(_, Object.assign((response = opened), { end: (text) => opened.write(text) })));
  const push = open(url, { transports: ["sse"] });
  const early = push[Symbol.asyncIterator]();
  assert.equal((await early.next()).value.data, "early");
  const late = push[Symbol.asyncIterator]();
  const first = late.next();
  response.write("id: 2\ndata: late\n\n");
  assert.equal((await first).value.data, "late");
  assert.equal((await early.next()).value.data, "late");
  push.close();
});

test("the delays are random, below a bound that doubles with each failure up to the longest one", async () => {
  const { delays, restore } = skipDelays(0, 2000);
  const failing = async () => new Response("", { status: 503 });
  try {
    const clients = Array.from({ length: 40 }, () => open("/", { transports: ["sse"], fetch: failing, minDelay: 100, maxDelay: 1000 }));
    /** For each failure, the delays of all clients. */
    const rounds = [];
    while (rounds.length < 6) {
      await Promise.all(clients.map((push) => next(push, "state", (state) => state === "waiting")));
      await Promise.resolve();
      rounds.push(delays.splice(0));
    }
    for (const push of clients) push.close();
    const most = rounds.map((round) => Math.max(...round));
    for (const [failures, max] of most.entries()) {
      const bound = Math.min(1000, 100 * 2 ** failures);
      assert.ok(max <= bound && max > bound / 2, `after ${failures + 1} failures: ${max} of ${bound}`);
    }
    assert.ok(rounds.every((round) => Math.min(...round) < 200), "full jitter");
  } finally {
    restore();
  }
});

test("an event makes the delays short again", async () => {
  const event = sse("id: 1\ndata: x\n\n");
  const fails = respond(503);
  const { url } = await serve(fails, fails, fails, fails, event, fails, finished);
  const { delays, restore } = skipDelays(0, 2000);
  await read(url, { minDelay: 100, maxDelay: 2000 }).finally(restore);
  const [afterEvent] = delays.slice(-2);
  assert.ok(afterEvent <= 100, `${delays}`);
});

test("a transport that has worked is tried first, until the tab is closed", async () => {
  const storage = {};
  globalThis.sessionStorage = storage;
  try {
    const batch = respond(200, { "content-type": "application/json" }, '[{"id":"1","data":"x"}]');
    const isPoll = (request) => request.url.includes("long-poll");
    const { url, requests } = await serve((request, response) => (isPoll(request) ? batch : respond(406))(request, response));
    const first = open(url, { transports: ["sse", "long-poll"] });
    await next(first, "event");
    await next(first, "event");
    first.close();
    assert.deepEqual(Object.values(storage), ["long-poll"]);
    const count = requests.length;
    const second = open(url, { transports: ["sse", "long-poll"] });
    await next(second, "event");
    second.close();
    assert.ok(requests.slice(count).every(isPoll));
    // A transport that the page does not use is not tried.
    const third = open(url, { transports: ["sse"] });
    const error = await next(third, "error");
    assert.equal(error.status, 406);
  } finally {
    delete globalThis.sessionStorage;
  }
});

test("a storage that throws is not used", async () => {
  const storage = new Proxy({}, { get: () => assert.fail("get"), set: () => assert.fail("set") });
  globalThis.sessionStorage = storage;
  try {
    const { url } = await serve(sse("id: 1\ndata: x\n\n"), finished);
    assert.equal((await read(url, { transports: ["sse", "long-poll"] })).items.length, 1);
  } finally {
    delete globalThis.sessionStorage;
  }
});

test("controlEvents names the events of a gap, an end and the end of the source", async () => {
  const controlEvents = { gap: "lost", end: "bye", finished: "done" };
  const body = 'event: gap\ndata: {"reason":"x"}\n\nevent: lost\ndata: {"reason":"lagged"}\n\nevent: bye\ndata: {"finished":false}\n\nevent: done\ndata: {"finished":true}\n\n';
  const { url } = await serve(sse(body));
  const { items } = await read(url, { controlEvents });
  assert.deepEqual(items.map(({ type, data, gap }) => data ?? { [type]: gap.reason }), [{ reason: "x" }, { gap: "lagged" }]);
});

test("credentials, method and headers are those of the requests", async () => {
  const inits = [];
  const fetch = async (_, init) => {
    inits.push(init);
    return new Response(null, { status: 204 });
  };
  for (const options of [{}, { credentials: "include", method: "QUERY", headers: { "x-a": "1" } }, { body: "q" }]) {
    const push = open("/", { transports: ["sse"], fetch, ...options });
    await next(push, "finished");
  }
  const sent = inits.map(({ credentials, method, headers, body, cache }) => [credentials, method, headers.get("x-a"), body, cache]);
  assert.deepEqual(sent, [
    // The default of `fetch` is "same-origin".
    [undefined, "GET", null, undefined, "no-store"],
    ["include", "QUERY", "1", undefined, "no-store"],
    [undefined, "POST", null, "q", "no-store"],
  ]);
});

test("headers that cannot be made are an error, after which the client comes back", async () => {
  const { url } = await serve(finished);
  let count = 0;
  const headers = async () => {
    if (++count < 3) throw new Error("no token");
    return {};
  };
  const { errors } = await read(url, { headers });
  assert.deepEqual(errors.map(({ message, final }) => [message, final]), [["Error: no token", false], ["Error: no token", false]]);
});

test("a parse that throws is final", async () => {
  const { url } = await serve(sse("data: x\n\n"));
  const parse = () => {
    throw new Error("mine");
  };
  const { errors } = await read(url, { parse });
  assert.match(errors[0].message, /parse failed: Error: mine/);
  assert.equal(errors[0].final, true);
});

test("since: now sends no cursor", async () => {
  const { url, requests } = await serve(finished);
  await read(url, { since: "now" });
  assert.equal(requests[0].headers["last-event-id"], undefined);
});

test("close codes that nobody sends are followed by another connection", async () => {
  // A connection without a close frame has the code 1006, and one whose close frame is empty 1005.
  for (const end of [(socket) => socket.terminate(), (socket) => socket.close()]) {
    const url = await serveSockets((socket, count) => {
      if (count > 1) return socket.close(1000);
      socket.send('{"id":"1","data":"x"}', () => end(socket));
    });
    const { items, errors } = await read(url, { transports: ["websocket"] });
    assert.deepEqual(items.map(({ data }) => data), ["x"]);
    assert.equal(errors[0].final, false);
  }
});

test("topicParameter names the query parameter of topics", async () => {
  const { url, requests } = await serve(finished);
  const push = connectTopics(url, { topics: ["a", "b"], topicParameter: "room", transports: ["sse"] });
  await next(push, "finished");
  assert.deepEqual(new URL(requests[0].url, url).searchParams.getAll("room"), ["a", "b"]);
});
