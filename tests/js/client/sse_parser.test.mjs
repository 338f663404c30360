// The cases of the Web Platform Tests for the parsing of event streams (eventsource/format-*), cut at every byte.

import assert from "node:assert/strict";
import { test } from "node:test";
import { open, skipDelays } from "./support.mjs";

/** Reads the response bodies, one after another, and returns the events and the cursor. */
async function parse(chunks) {
  let isFirst = true;
  const fetch = async () => {
    if (!isFirst) return new Response(null, { status: 204 });
    isFirst = false;
    const body = new ReadableStream({
      start(controller) {
        for (const chunk of chunks) controller.enqueue(chunk);
        controller.close();
      },
    });
    return new Response(body, { headers: { "content-type": "text/event-stream" } });
  };
  const push = open("/", { transports: ["sse"], fetch, parse: String });
  const events = [];
  let retry;
  for await (const { type, data } of push) events.push(type === "message" ? data : [type, data]);
  return { events, cursor: push.cursor, retry };
}

const CASES = [
  ["a byte order mark is removed", "\uFEFFdata: 1\n\n", ["1"]],
  ["a second byte order mark makes an unknown field", "\uFEFF\uFEFFdata: 1\n\ndata: 2\n\n", ["2"]],
  ["comments", "data:1\r:\0\n:\r\ndata:2\n:" + "x".repeat(2000) + "\rdata:3\n:data:fail\r:" + "y".repeat(100) + "\ndata:4\n\n", ["1\n2\n3\n4"]],
  ["lines end with CR, LF and CRLF", "data:1\rdata:2\r\n\rdata:3\n\n", ["1\n2", "3"]],
  ["CRLF between events", "data:a\r\n\r\ndata:b\r\n\r\n", ["a", "b"]],
  ["CR between events", "data:a\r\rdata:b\r\r", ["a", "b"]],
  ["field: data before a final EOF is discarded", "data:test\n\ndata\ndata\n\ndata:test\n\ndata: lost", ["test", "\n", "test"]],
  ["one leading space is removed", "data:\ttest\rdata: \ndata:test\n\n", ["\ttest\n\ntest"]],
  ["field parsing", "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n", ["\0\n 2\n1\n3\n\n4"]],
  ["event types", "event:test\ndata:x\n\ndata:x\n\nevent:\ndata:y\n\n", [["test", "x"], "x", "y"]],
  ["a type without data fires nothing, and is forgotten", "event:test\n\ndata:x\n\n", ["x"]],
  ["unknown fields", "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n", ["test\n\ntest"]],
  ["UTF-8", "data:ok…é€𝄞\n\n", ["ok…é€𝄞"]],
  ["an empty data field is an event", "data\n\ndata:\n\n", ["", ""]],
  ["an id alone moves the cursor", "id: 1\n\n", [], "1"],
  ["an empty id resets the cursor", "id: 1\ndata:x\n\nid\ndata:y\n\n", ["x", "y"], undefined],
  ["an id with NUL is ignored", "id: 7\n\nid: a\0b\ndata:x\n\n", ["x"], "7"],
  ["the id of an event that is cut does not count", "id: 1\ndata:x\n\nid: 2\ndata: lost\n", ["x"], "1"],
  ["a field without a colon", "data\n\nid\n\n", [""]],
  ["many newlines", "\n\n\r\r\n\ndata:x\n\n\n\r\n", ["x"]],
  ["an application's own events named as the server's are passed on", "event: gap\ndata: mind it\n\nevent: end\ndata: {}\n\n", [["gap", "mind it"], ["end", "{}"]]],
];

for (const [name, stream, events, cursor] of CASES) {
  test(name, async () => {
    const bytes = new TextEncoder().encode(stream);
    const single = Array.from(bytes, (byte) => Uint8Array.of(byte));
    const splits = Array.from({ length: Math.min(bytes.length, 200) }, (_, at) => [bytes.subarray(0, at), bytes.subarray(at)]);
    for (const chunks of [single, ...splits]) {
      const parsed = await parse(chunks);
      assert.deepEqual(parsed.events, events, `first chunk: ${chunks[0].length} bytes`);
      assert.equal(parsed.cursor, cursor);
    }
  });
}

test("retry takes digits only", async () => {
  const hasDelay = [];
  for (const retry of ["retry:20", "retry: 20", "retry:1000x", "retry:-1", "retry: 1e3", "retry:", "retry"]) {
    const { delays, restore } = skipDelays(20);
    let requests = 0;
    const fetch = async () => {
      if (++requests > 1) return new Response(null, { status: 204 });
      return new Response(`${retry}\ndata: x\n\n`, { headers: { "content-type": "text/event-stream" } });
    };
    for await (const _ of open("/", { transports: ["sse"], fetch, minDelay: 0 })) {
      // The delay is what counts.
    }
    restore();
    hasDelay.push(delays.length > 0);
  }
  assert.deepEqual(hasDelay, [true, true, false, false, false, false, false]);
});

test("an event has all of its topics", async () => {
  const body = "topic: a\ntopics: a\tb, c\td\ndata: 1\n\ntopic: a\ndata: 2\n\n";
  const fetch = async () => new Response(body, { headers: { "content-type": "text/event-stream" } });
  const push = open("/", { transports: ["sse"], fetch });
  const topics = [];
  for await (const item of push) {
    topics.push([item.topic, item.topics]);
    if (topics.length === 2) break;
  }
  push.close();
  assert.deepEqual(topics, [["a", ["a", "b, c", "d"]], ["a", undefined]]);
});
