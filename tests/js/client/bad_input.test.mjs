// Bad input over each transport that can get it. failures.test.mjs has the failures of good servers, too.

import assert from "node:assert/strict";
import { createServer as createTcpServer } from "node:net";
import { test } from "node:test";
import { eventSource } from "../../../clients/js/dist/event-source.js";
import { finished, handshakeResponse, listen, read, respond, serve, serveSockets, sse } from "./servers.mjs";
import { next, open as connect, skipDelays, until, wait } from "./support.mjs";

const batch = (body, headers) => respond(200, { "content-type": "application/json", ...headers }, body);

/** Collects the first errors of a connection that comes back again and again, and closes it. */
async function firstErrors(url, transport, count = 3) {
  const push = connect(url, { transports: [transport] });
  const errors = [];
  push.on("error", (error) => errors.push(error));
  await until(() => errors.length >= count);
  push.close();
  return errors;
}

/** Answers with a body that begins with `start`, and repeats `text` until the client has gone. Counts what it has written in `endless.written`. */
function endless(status, headers, start, text) {
  endless.written = 0;
  return (_, response) => {
    response.writeHead(status, headers);
    response.write(start);
    const write = () => {
      while (!response.destroyed && response.write(text)) endless.written += text.length;
      if (!response.destroyed) response.once("drain", write);
    };
    write();
  };
}

for (const transport of ["websocket", "sse", "long-poll"]) {
  test(`${transport}: a server that speaks no HTTP is tried again, with delays`, async () => {
    let connections = 0;
    const server = createTcpServer((socket) => {
      connections++;
      socket.on("error", () => {});
      socket.on("data", () => socket.end("\x00\xff SSH-2.0 garbage\r\n\r\n"));
    });
    const errors = await firstErrors(await listen(server), transport);
    for (const error of errors) assert.equal(error.final, false);
    assert.ok(connections <= errors.length + 1, `${connections} connections`);
  });

  test(`${transport}: redirects in circles are an error, after which the client comes back`, async () => {
    const { url, requests } = await serve(respond(302, { location: "/again" }));
    const errors = await firstErrors(url, transport, 2);
    for (const error of errors) assert.equal(error.final, false);
    assert.ok(requests.length < 100, `${requests.length} requests`);
  });

  test(`${transport}: an answer that never comes is given up, and asked for again`, async () => {
    let connections = 0;
    const open = new Set();
    const server = createTcpServer((socket) => {
      connections++;
      open.add(socket);
      socket.on("error", () => {}).on("close", () => open.delete(socket)).resume();
    });
    const { delays, restore } = skipDelays(60_000, 60_000, 50);
    const push = connect(await listen(server), { transports: [transport, transport === "sse" ? "long-poll" : "sse"] });
    await until(() => connections >= 3).finally(restore);
    push.close();
    // No attempt leaves a connection behind.
    await until(() => open.size === 0);
    assert.ok(delays.length >= 2);
  });
}

for (const transport of ["sse", "long-poll"]) {
  test(`${transport}: an error whose body never ends is an error`, async () => {
    const { url } = await serve(endless(503, {}, "", "x".repeat(1000)), finished);
    const { errors } = await read(url, { transports: [transport] });
    assert.deepEqual(errors.map(({ status, final, body }) => [status, final, body.length]), [[503, false, 1000]]);
  });

  test(`${transport}: an error whose body never comes is given up`, async () => {
    const silent = (_, response) => response.writeHead(503).flushHeaders();
    const { url, requests } = await serve(silent, finished);
    const { restore } = skipDelays(60_000, 60_000, 200);
    await read(url, { transports: [transport] }).finally(restore);
    assert.ok(requests.length >= 2);
  });
}

test("sse: bytes that are no event stream are no events, and end as a stream does", async () => {
  const garbage = Buffer.from(Array.from({ length: 20_000 }, (_, n) => (n * n * 31 + (n >> 3)) % 256).filter((byte) => byte !== 0x64));
  const { url, requests } = await serve(sse(garbage), sse('id: 1\ndata: "x"\n\n'), finished);
  const { items } = await read(url);
  assert.deepEqual(items.map(({ data }) => data), ["x"]);
  assert.equal(requests.length, 3);
});

test("sse: times to reconnect that are no numbers are ignored, and huge ones are no busy loop", async () => {
  for (const value of ["-1", "1e9", "0x10", "1.5", "", "NaN"]) {
    const { url } = await serve(sse(`retry: ${value}\nid: 1\ndata: 1\n\n`), finished);
    assert.equal((await read(url)).items.length, 1, value);
  }
  const { url, requests } = await serve(sse(`retry: ${"9".repeat(400)}\ndata: 1\n\n`), finished);
  const push = connect(url, { transports: ["sse"] });
  await next(push, "state", (state) => state === "waiting");
  await wait(100);
  assert.equal(requests.length, 1);
  push.close();
});

test("ids that go back are followed on every transport", async () => {
  const records = ['{"id":"9","data":9}', '{"id":"3","data":3}'];
  const polled = await serve(batch(`[${records}]`), finished);
  const { items } = await read(polled.url, { transports: ["long-poll"] });
  assert.deepEqual(items.map(({ data }) => data), [9, 3]);
  assert.equal(polled.requests[1].headers["last-event-id"], "3");
  const cursors = [];
  const url = await serveSockets((socket, count, request) => {
    cursors.push(new URL(request.url, "http://x").searchParams.get("last_event_id"));
    if (count > 1) return socket.close(1000);
    for (const record of records) socket.send(record);
    socket.close(1012);
  });
  const socket = await read(url, { transports: ["websocket"] });
  assert.deepEqual(socket.items.map(({ data }) => data), [9, 3]);
  assert.deepEqual(cursors, [null, "3"]);
});

test("an id that no header can carry as it is comes back as UTF-8, as with an EventSource", async () => {
  for (const id of ["é", "€ 𝄞", "a b"]) {
    const { url, requests } = await serve(sse(`id: ${id}\ndata: x\n\n`), finished);
    const { errors, push } = await read(url);
    assert.deepEqual(errors, []);
    assert.equal(Buffer.from(requests[1].headers["last-event-id"], "latin1").toString(), id);
    assert.equal(push.cursor, id);
  }
});

test("members of an envelope that have a wrong type do no harm", async () => {
  const bad = [
    '{"id":7,"data":1}',
    '{"id":{},"cursor":[],"data":2}',
    '{"event":7,"data":3}',
    '{"topic":[],"topics":7,"data":4}',
    '{"end":7}',
    '{"end":{"finished":"","retry":"soon"}}',
    '{"gap":null}',
    '{"__proto__":{"id":"x"},"data":5}',
  ];
  const good = '{"id":"1","data":"x"}';
  const { url } = await serve(batch(`[${bad},${good}]`), finished);
  const url2 = await serveSockets((socket) => {
    for (const record of [...bad, good]) socket.send(record);
    socket.close(1000);
  });
  for (const [address, transport] of [[url, "long-poll"], [url2, "websocket"]]) {
    const { items, errors, push } = await read(address, { transports: [transport] });
    assert.deepEqual(errors, [], transport);
    assert.deepEqual(items.map(({ data }) => data), [1, 2, 3, 4, 5, "x"], transport);
    assert.equal(push.cursor, "1");
    assert.equal({}.id, undefined);
  }
});

test("bytes that are not base64 are an error, after which the client comes back", async () => {
  for (const value of ['"ä"', "7", "{}"]) {
    const url = await serveSockets((socket) => socket.send(`{"data_base64":${value}}`));
    for (const { message, final } of await firstErrors(url, "websocket")) {
      assert.match(message, /not base64/, value);
      assert.equal(final, false);
    }
  }
});

test("websocket: bytes in place of an envelope are an error", async () => {
  const url = await serveSockets((socket) => socket.send(Buffer.of(0, 1, 2)));
  const { errors } = await read(url, { transports: ["websocket"] });
  assert.match(errors.at(-1).message, /^not an envelope/);
  assert.equal(errors.at(-1).final, true);
});

test("websocket: a compressed bomb is final", async () => {
  const url = await serveSockets((socket) => socket.send("x".repeat(10_000_000)), { perMessageDeflate: { threshold: 0 } });
  const { errors } = await read(url, { transports: ["websocket"], maxEventLength: 1000 });
  assert.match(errors[0].message, /longer than 1000/);
  assert.equal(errors[0].final, true);
});

test("long-poll: an event that never ends, and a batch that never ends, are final, in bounded memory", async () => {
  for (const [start, text] of [['[{"data":"', "x".repeat(60_000)], ['[{"data":1}', ',{"data":1}'.repeat(1000)]]) {
    const { url, requests } = await serve(endless(200, { "content-type": "application/json" }, start, text));
    const { items, errors } = await read(url, { transports: ["long-poll"], maxEventLength: 200_000 });
    assert.equal(items, undefined);
    assert.deepEqual(errors.map(({ message, final }) => [message, final]), [["an event is longer than 200000", true]]);
    assert.equal(requests.length, 1);
    assert.ok(endless.written < 20_000_000, `${endless.written}`);
  }
});

test("websocket: a message of 10 GB is an error, in bounded memory", async () => {
  let written = 0;
  const server = createTcpServer((socket) => {
    socket.on("error", () => {});
    socket.once("data", (request) => {
      socket.write(handshakeResponse(request));
      // A text of 10 GB.
      socket.write(Buffer.from([0x81, 127, 0, 0, 0, 2, 0x54, 0x0b, 0xe4, 0]));
      const write = () => {
        while (!socket.destroyed && socket.write("x".repeat(60_000))) written += 60_000;
        if (!socket.destroyed) socket.once("drain", write);
      };
      write();
    });
  });
  const errors = await firstErrors(await listen(server), "websocket", 1);
  assert.match(errors[0].message, /^WebSocket closed: 10/);
  assert.ok(written < 20_000_000, `${written}`);
});

for (const [what, answer] of [
  ["a page of HTML", respond(200, { "content-type": "text/html" }, "<h1>Log in</h1>")],
  ["another media type", respond(200, { "content-type": "application/json" }, "[]")],
  ["redirects in circles", respond(302, { location: "/again" })],
  ["a status", respond(403)],
]) {
  test(`event-source: after ${what}, the client comes back with delays`, async () => {
    const { url, requests } = await serve(answer);
    const errors = await firstErrors(url, eventSource());
    for (const { message, final } of errors) assert.deepEqual([message, final], ["the EventSource has failed", false]);
    assert.ok(requests.length < 100, `${requests.length} requests`);
  });
}

test("event-source: bytes that are no event stream are no events, and ids that go back are followed", async () => {
  const { url } = await serve(sse("\0\xff garbage\n: \n\nid: 9\ndata: 9\n\nid: 3\ndata: 3\n\n"), sse('event: finished\ndata: {"finished":true}\n\n'));
  const { items, push } = await read(url, { transports: [eventSource()] });
  assert.deepEqual(items.map(({ data }) => data), [9, 3]);
  assert.equal(push.cursor, "3");
});

test("websocket: close reasons that make no sense name no time", async () => {
  for (const reason of ["null", '"x"', '{"retry":"soon"}', '{"retry":-5}', "[]", "{"]) {
    const url = await serveSockets((socket, count) => {
      socket.send('{"id":"1"}');
      socket.close(count === 1 ? 1012 : 1000, reason);
    });
    const { restore } = skipDelays(1000, 50_000);
    const { errors } = await read(url, { transports: ["websocket"] }).finally(restore);
    assert.deepEqual(errors.map(({ code, final }) => [code, final]), [[1012, false]], reason);
  }
});

test("long-poll: a batch that comes again and again is not asked for without a pause, and other batches are", async () => {
  const json = { "content-type": "application/json" };
  for (const [name, isRepeated, batchOf] of [
    ["the same batch", true, () => '[{"id":"1","data":1},{"id":"2","data":2}]'],
    ["the same batch without ids", true, () => '[{"data":1}]'],
    ["the same batch with a cursor", true, () => '[{"id":"e","cursor":"1","data":1}]'],
    ["ends that name no time", true, (n) => `[{"id":"${n}","data":1},{"end":{}}]`],
    ["new batches", false, (n) => `[{"id":"${n}","data":1}]`],
    ["events that do not move the cursor", false, (n) => (n > 1 ? '[{"data":1}]' : '[{"id":"1","data":1}]')],
  ]) {
    let count = 0;
    const { url } = await serve((_, response) => response.writeHead(200, json).end(batchOf(++count)));
    const push = connect(url, { transports: ["long-poll"] });
    let waits = 0;
    push.on("state", (state) => (waits += state === "waiting"));
    await until(() => count >= 8);
    push.close();
    assert.equal(waits >= 5, isRepeated, `${name}: ${waits} pauses`);
  }
});

test("websocket: a page of HTML in place of a handshake is an error, after which the client comes back", async () => {
  const html = createTcpServer((socket) => {
    socket.on("error", () => {});
    socket.on("data", () => socket.end("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<h1>"));
  });
  for (const error of await firstErrors(await listen(html), "websocket")) assert.equal(error.final, false);
});

test("event-source: data that is no event of the client's is passed on as it is", async () => {
  const { url } = await serve(sse('event: gap\ndata: null\n\nevent: end\ndata: {\n\nevent: finished\ndata: 7\n\nid: 1\ndata: x\n\nevent: finished\ndata: {"finished":true}\n\n'));
  const { items } = await read(url, { transports: [eventSource()] });
  assert.deepEqual(items.map(({ type, data }) => [type, data]), [["gap", null], ["end", "{"], ["finished", 7], ["message", "x"]]);
});
