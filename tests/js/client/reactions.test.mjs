// What the client does after each status and each close code: the table of docs/clients.md, which tests/push_client/reactions.rs checks with the Rust
// client.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { open } from "./support.mjs";

const TABLES = JSON.parse(readFileSync(new URL("../../client_reactions.json", import.meta.url), "utf8"));

/** Returns the reactions of a table, by their numbers. The first line that matches a number has its reaction. */
function reactions(name) {
  const found = new Map();
  for (const { match, reaction } of TABLES[name]) {
    for (const [, from, to = from] of match.matchAll(/(\d+)(?: to (\d+))?/g)) {
      for (let number = +from; number <= +to; number++) if (!found.has(number)) found.set(number, reaction);
    }
  }
  return found;
}

/**
 * Opens a connection whose first request, for `transports[0]`, fails, and whose later ones are answered as the source has finished, unless all fail.
 * Returns what the client does.
 */
async function observe(transports, options, requests) {
  const states = [];
  const errors = [];
  const push = open("http://host/", { transports, headers: () => ({}), ...options });
  push.on("state", (state) => states.push(state));
  push.on("error", (error) => errors.push(error));
  await new Promise((resolve) => push.on("state", (state) => state === "closed" && resolve()));
  const hasWaited = states.includes("waiting");
  const isFinal = errors.at(-1)?.final;
  const [, second] = requests;
  if (!second) return isFinal ? "stop" : "finish";
  if (second !== requests[0]) return isFinal ? "stop after the next transport" : "next_transport";
  if (hasWaited) return "retry";
  return isFinal ? "stop after a renewal" : "renew";
}

test("each status has the reaction of the table", async () => {
  const statuses = reactions("statuses");
  assert.equal(statuses.size, 599 - 200);
  for (const [status, expected] of statuses) {
    for (const allFail of [false, true]) {
      // A client that comes back would come back for ever.
      if (allFail && expected === "retry") continue;
      const requests = [];
      const fetch = async (_, { headers }) => {
        requests.push(headers.get("accept"));
        return new Response(null, { status: requests.length === 1 || allFail ? status : 204 });
      };
      const observed = await observe(["sse", "long-poll"], { fetch }, requests);
      const ends = { renew: "stop after a renewal", next_transport: "stop after the next transport" };
      assert.equal(observed, (allFail && ends[expected]) || expected, `${status}`);
    }
  }
});

test("each close code has the reaction of the table", async () => {
  const statuses = reactions("statuses");
  for (let [code, expected] of reactions("close_codes")) {
    const requests = [];
    class Socket {
      protocol = "json.tower-push";
      readyState = 1;
      constructor() {
        requests.push("websocket");
        const event = { code: requests.length === 1 ? code : 1000, reason: "why" };
        queueMicrotask(() => {
          this.onopen();
          this.onclose(event);
        });
      }
      close() {}
    }
    const fetch = async () => {
      requests.push("sse");
      return new Response(null, { status: 204 });
    };
    if (expected === "status") expected = statuses.get(code - 4000);
    // The server has accepted the transport.
    if (expected === "next_transport") expected = "stop";
    assert.equal(await observe(["websocket", "sse"], { WebSocket: Socket, fetch }, requests), expected, `${code}`);
  }
});
