// What servers of others, broken ones and hostile ones send: the error, and whether the client comes back.

import assert from "node:assert/strict";
import { createServer as createTcpServer } from "node:net";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { eventSource } from "../../../clients/js/dist/event-source.js";
import { finished, handshakeResponse, listen, read, respond, serve, serveSockets, sse } from "./servers.mjs";
import { TRANSPORTS, next, open, readAll, skipDelays } from "./support.mjs";

for (const status of [400, 403, 404, 410, 418]) {
  test(`status ${status} is final, and its body is kept`, async () => {
    for (const transports of [["sse"], ["long-poll"], undefined]) {
      const { url } = await serve(respond(status, {}, `because ${"x".repeat(5000)}`));
      const { errors } = await read(url, { transports });
      const error = errors.at(-1);
      assert.equal(error.status, status);
      assert.equal(error.final, true);
      assert.match(error.body, /^because x/);
      assert.equal(error.body.length, 1000);
    }
  });
}

for (const status of [408, 425, 429, 500, 502, 503, 504]) {
  test(`the client comes back after status ${status}`, async () => {
    for (const transport of ["sse", "long-poll"]) {
      const { url, requests } = await serve(respond(status), respond(status), finished);
      const { errors } = await read(url, { transports: [transport] });
      assert.deepEqual(errors.map((error) => [error.status, error.final]), [[status, false], [status, false]]);
      assert.equal(requests.length, 3);
    }
  });
}

test("Retry-After is the shortest delay", async () => {
  const { now } = Date;
  const time = Math.ceil(now() / 1000) * 1000;
  Date.now = () => time;
  const { delays, restore } = skipDelays(1000);
  try {
    for (const value of ["2", new Date(time + 2000).toUTCString()]) {
      const { url } = await serve(respond(503, { "retry-after": value }), finished);
      const { errors } = await read(url);
      assert.equal(errors[0].retryAfter, 2000);
      const [delay] = delays.splice(0);
      assert.ok(delay >= 2000 && delay <= 3000, `${value}: ${delay}`);
    }
  } finally {
    Date.now = now;
    restore();
  }
});

test("long-poll: the time of an end is the shortest delay, although a page of another origin cannot read Retry-After", async () => {
  const body = '[{"id":"1","data":1},{"end":{"finished":false,"retry":5200}}]';
  const { url } = await serve(respond(200, { "content-type": "application/json" }, body), finished);
  const { delays, restore } = skipDelays(5200, 7800);
  const { items } = await read(url, { transports: ["long-poll"] }).finally(restore);
  assert.deepEqual(items.map(({ data }) => data), [1]);
  assert.equal(delays.length, 1);
});

test("a huge Retry-After is no busy loop", async () => {
  const { url, requests } = await serve(respond(503, { "retry-after": "99999999999999" }), finished);
  const push = open(url, { transports: ["sse"] });
  await next(push, "state", (state) => state === "waiting");
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(requests.length, 1);
  push.close();
});

test("401 asks for headers once more", async () => {
  const isAllowed = (request) => request.headers.authorization === "token 2";
  const answer = (request, response) => (isAllowed(request) ? finished : respond(401, {}, "expired"))(request, response);
  let count = 0;
  const headers = async () => ({ authorization: `token ${++count}` });
  const first = await read((await serve(answer)).url, { headers });
  assert.deepEqual([first.errors.length, first.errors[0].final, count], [1, false, 2]);
  const second = await read((await serve(respond(401))).url, { headers });
  assert.deepEqual(second.errors.map((error) => error.final), [false, true]);
  const fixed = await read((await serve(respond(401))).url, { headers: { authorization: "old" } });
  assert.deepEqual(fixed.errors.map((error) => error.final), [true]);
});

test("401 in mid-stream asks for headers once more, and goes on", async () => {
  let count = 0;
  const { url, requests } = await serve(sse("id: 1\ndata: 1\n\n"), respond(401), sse("id: 2\ndata: 2\n\n"), respond(401), sse("id: 3\ndata: 3\n\n"), finished);
  const { items } = await read(url, { headers: () => ({ authorization: `${++count}` }) });
  assert.deepEqual(items.map(({ data }) => data), [1, 2, 3]);
  assert.deepEqual(requests.map(({ headers }) => headers["last-event-id"]), [undefined, "1", "1", "2", "2", "3"]);
  assert.equal(count, 6);
});

test("a page of HTML is final", async () => {
  for (const transports of [["sse"], ["long-poll"], undefined]) {
    const { url } = await serve(respond(200, { "content-type": "text/html; charset=utf-8" }, "<h1>Log in</h1>"));
    const { errors } = await read(url, { transports });
    assert.match(errors.at(-1).message, /text\/html/);
    assert.equal(errors.at(-1).final, true);
    assert.equal(errors.at(-1).body, "<h1>Log in</h1>");
  }
});

test("a wrong Content-Type leads to the next transport", async () => {
  const batch = respond(200, { "content-type": "application/json", "last-event-id": "1" }, '[{"id":"1","data":"x"}]');
  const { url } = await serve(batch, batch, finished);
  const { items, errors } = await read(url, { transports: ["sse", "long-poll"] });
  assert.deepEqual(items.map(({ data }) => data), ["x"]);
  assert.match(errors[0].message, /application\/json.*not text\/event-stream/);
  const plain = await read((await serve(respond(200, { "content-type": "text/plain" }))).url, { transports: ["sse", "long-poll"] });
  assert.equal(plain.errors.at(-1).final, true);
});

test("an endless line and a huge event are final, in bounded memory", async () => {
  for (const line of ["data: " + "x".repeat(60_000), "data: " + "x".repeat(1000) + "\n"]) {
    let written = 0;
    const endless = (_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      const write = () => {
        while (!response.destroyed && response.write(line)) written += line.length;
        if (!response.destroyed) response.once("drain", write);
      };
      write();
    };
    const { url, requests } = await serve(endless);
    const { errors } = await read(url, { maxEventLength: 200_000 });
    assert.match(errors[0].message, /longer than 200000/);
    assert.equal(errors[0].final, true);
    assert.equal(requests.length, 1);
    assert.ok(written < 20_000_000, `${written}`);
  }
});

test("a compressed bomb is bounded", async () => {
  const bomb = gzipSync(Buffer.concat([Buffer.from("data: "), Buffer.alloc(100_000_000, "x")]));
  const { url } = await serve(sse(bomb, { "content-encoding": "gzip" }));
  const { errors } = await read(url, { maxEventLength: 1_000_000 });
  assert.match(errors[0].message, /longer than 1000000/);
  const poll = await serve(respond(200, { "content-type": "application/json", "content-encoding": "gzip" }, bomb));
  const polled = await read(poll.url, { transports: ["long-poll"], maxEventLength: 1_000_000 });
  assert.match(polled.errors[0].message, /longer than 1000000/);
});

test("redirects in circles are an error, after which the client comes back", async () => {
  const { url, requests } = await serve((_, response) => response.writeHead(302, { location: "/again" }).end());
  const push = open(url, { transports: ["sse"] });
  const errors = [];
  push.on("error", (error) => errors.push(error));
  while (errors.length < 2) await next(push, "error");
  push.close();
  assert.equal(errors[0].final, false);
  assert.ok(requests.length < 100);
});

test("garbage in a batch or an envelope is an error that says so", async () => {
  for (const body of ["<html>", "{}", "null", "[1]", '["x"]', "[null]", ""]) {
    const { url } = await serve(respond(200, { "content-type": "application/json" }, body));
    const { errors } = await read(url, { transports: ["long-poll"] });
    assert.match(errors.at(-1).message, /^not a batch/, body);
    assert.equal(errors.at(-1).final, true);
  }
  for (const message of ["hello", "[]", "null", "7"]) {
    const url = await serveSockets((socket) => socket.send(message));
    const { errors } = await read(url, { transports: ["websocket"] });
    assert.match(errors.at(-1).message, /^not an envelope/, message);
    assert.equal(errors.at(-1).final, true);
  }
});

test("an empty batch that comes at once is no busy loop", async () => {
  const { url, requests } = await serve(respond(200, { "content-type": "application/json" }, "[]"));
  const push = open(url, { transports: ["long-poll"] });
  for (let waits = 1; waits <= 4; waits++) {
    await next(push, "state", (state) => state === "waiting");
    // The first poll asks for an answer at once, so no delay follows it.
    assert.equal(requests.length, waits + 1);
  }
  push.close();
});

test("ids that go back are followed", async () => {
  const { url, requests } = await serve(sse("id: 9\ndata: 9\n\nid: 3\ndata: 3\n\n"), finished);
  const { items } = await read(url);
  assert.deepEqual(items.map(({ data }) => data), [9, 3]);
  assert.equal(requests[1].headers["last-event-id"], "3");
});

test("a response that opens and stays silent is replaced, unless no other transport is better", async () => {
  const silent = (_, response) => response.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
  const isPoll = (request) => request.url.includes("long-poll");
  const batch = respond(200, { "content-type": "application/json" }, '[{"id":"1","data":"x"},{"end":{"finished":true}}]');
  const buffering = await serve((request, response) => (isPoll(request) ? batch : silent)(request, response));
  const replaced = await read(buffering.url, { transports: ["sse", "long-poll"], openTimeout: 50 });
  assert.deepEqual(replaced.items.map(({ data }) => data), ["x"]);

  let silentResponse;
  const quiet = await serve((request, response) => {
    if (isPoll(request)) return respond(404)(request, response);
    silent(request, (silentResponse = response));
  });
  const push = open(quiet.url, { transports: ["websocket", "sse"], openTimeout: 50 });
  const items = readAll(push);
  for (let count; push.state !== "open" || quiet.requests.length !== count; ) {
    count = quiet.requests.length;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  silentResponse.write("data: late\n\n");
  await next(push, "event");
  push.close();
  assert.deepEqual((await items).map(({ data }) => data), ["late"]);
});

// WebSockets -----------------------------------------------------------------------------------------------------------------------------------

test("the consequence of a close code", async () => {
  const comesBack = { 1001: true, 1011: true, 1012: true, 1013: true, 3000: true, 3005: true, 3499: true, 4000: true, 4408: true, 4429: true, 4503: true };
  const isFinal = { 1002: true, 1003: true, 1007: true, 1008: true, 1009: true, 3500: true, 3999: true, 4400: true, 4403: true, 4404: true };
  for (const code of Object.keys({ ...comesBack, ...isFinal }).map(Number)) {
    const url = await serveSockets((socket, count) => {
      socket.send(JSON.stringify({ id: String(count), data: count }));
      socket.close(count === 1 ? code : 1000, "why");
    });
    const { items, errors } = await read(url, { transports: ["websocket"] });
    assert.equal(errors[0].code, code);
    assert.equal(errors[0].final, code in isFinal, `${code}`);
    assert.match(errors[0].message, /why/);
    assert.deepEqual(items?.map(({ data }) => data), code in isFinal ? undefined : [1, 2], `${code}`);
  }
});

test("4401 asks for new subprotocols once", async () => {
  let count = 0;
  const protocols = async () => ["json.tower-push", `token.${++count}`];
  const url = await serveSockets((socket, _, request) => {
    const isNew = request.headers["sec-websocket-protocol"].includes("token.2");
    socket.close(isNew ? 1000 : 4401);
  });
  const push = open(url, { transports: ["websocket"], protocols, headers: () => ({}) });
  assert.deepEqual(await readAll(push), []);
  assert.equal(count, 2);
});

test("a time in the close reason is the shortest delay", async () => {
  const { delays, restore } = skipDelays(200, 300);
  const url = await serveSockets((socket, count) => {
    socket.send('{"id":"1"}');
    socket.close(count === 1 ? 1012 : 1000, '{"finished":false,"retry":200}');
  });
  await read(url, { transports: ["websocket"] }).finally(restore);
  assert.equal(delays.length, 1);
});

test("messages of a server that selects no envelopes are payloads", async () => {
  const url = await serveSockets(
    (socket) => {
      socket.send("21.5");
      socket.send('{"a":1}');
      socket.send("text");
      socket.send(Buffer.of(0, 255));
      socket.on("message", (message) => {
        socket.send(message.toString());
        socket.close(1000);
      });
    },
    { handleProtocols: () => false },
  );
  const push = open(url, { transports: ["websocket"], protocols: [] });
  push.on("event", ({ data }) => data instanceof Uint8Array && assert.equal(push.send({ b: 2 }), true));
  const items = await readAll(push);
  assert.deepEqual(items.map(({ data }) => data), [21.5, { a: 1 }, "text", Uint8Array.of(0, 255), { b: 2 }]);
});

test("a long message is final", async () => {
  const url = await serveSockets((socket) => socket.send(JSON.stringify({ data: "x".repeat(2000) })));
  const { errors } = await read(url, { transports: ["websocket"], maxEventLength: 1000 });
  assert.match(errors[0].message, /longer than 1000/);
  assert.equal(errors[0].final, true);
});

test("a server that masks its frames is left for the next transport", async () => {
  const server = createTcpServer((socket) => {
    socket.on("error", () => {});
    socket.on("data", (bytes) => {
      if (!/sec-websocket-key/i.test(bytes)) return socket.end("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nevent: finished\ndata: {\"finished\":true}\n\n");
      socket.write(handshakeResponse(bytes));
      socket.write(Buffer.from([0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]));
    });
  });
  const { errors, push } = await read(await listen(server), { transports: ["websocket", "sse"] });
  assert.ok(errors.length >= 1);
  assert.equal(push.transport, "sse");
});

test("a WebSocket is not used with headers that it cannot carry", async () => {
  const { url, requests } = await serve(finished);
  const { push } = await read(url, { transports: undefined, headers: { authorization: "x" }, WebSocket: undefined });
  assert.equal(push.transport, "sse");
  assert.equal(requests[0].headers.authorization, "x");
  assert.throws(() => open(url, { transports: ["websocket"], headers: {}, WebSocket: undefined }), /no usable transport/);
});

test("an EventSource that fails is opened anew", async () => {
  const { url } = await serve(sse("id: 1\ndata: 1\n\n"), respond(503), sse('id: 2\ndata: 2\n\nevent: finished\ndata: {"finished":true}\n\n'));
  const { items } = await read(url, { transports: [eventSource()] });
  assert.deepEqual(items.map(({ data }) => data), [1, 2]);
});

test("a server that is not there is tried again, later and later", async () => {
  const server = createTcpServer();
  const url = await listen(server);
  server.close();
  const push = open(url, { transports: TRANSPORTS, minDelay: 5, maxDelay: 20 });
  let waits = 0;
  while (waits < 6) {
    await next(push, "state", (state) => state === "waiting");
    waits++;
  }
  push.close();
});
