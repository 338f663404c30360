// What the tests of the JavaScript client share. SERVER is the address of a server of tests/js_client.rs.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { connect as connectSocket, createServer } from "node:net";
import { EventSource } from "eventsource";
import { WebSocket } from "ws";
import { connect } from "../../../clients/js/dist/index.js";
import { eventSource } from "../../../clients/js/dist/event-source.js";

export const { SERVER } = process.env;
assert.ok(SERVER, "run the tests with cargo: cargo test --package tower-push-tests --test js_client");

/** Every transport of the client. */
export const TRANSPORTS = ["websocket", "sse", "long-poll", eventSource(["json", "bytes", "empty"])];

/** Opens a connection that comes back almost at once, and waits for a busy machine. */
export function open(url, options = {}) {
  return connect(new URL(url, SERVER), { WebSocket, EventSource, minDelay: 1, maxDelay: 20, openTimeout: 60_000, ...options });
}

/**
 * Records the delays of timers from `min` to `max` milliseconds, and lets these timers end at once, or after `instead`. Call `restore` at the end. The
 * timers of `open` that watch an attempt are a minute or longer.
 */
export function skipDelays(min, max = 59_000, instead = 0) {
  const { setTimeout: original } = globalThis;
  const delays = [];
  globalThis.setTimeout = (task, delay = 0, ...rest) => {
    const isSkipped = delay >= min && delay <= max;
    if (isSkipped) delays.push(delay);
    return original(task, isSkipped ? instead : delay, ...rest);
  };
  return { delays, restore: () => (globalThis.setTimeout = original) };
}

/** Lets the clock run `factor` times as fast for the ticks of connections. Returns a function that ends this. */
export function speedUpTicks(factor = 20) {
  const { setInterval: original } = globalThis;
  const { now } = Date;
  const start = now();
  globalThis.setInterval = (task, delay, ...rest) => original(task, delay / factor, ...rest);
  Date.now = () => start + (now() - start) * factor;
  return () => {
    globalThis.setInterval = original;
    Date.now = now;
  };
}

/** The events of `/feed`. */
export const FEED = Array.from({ length: 12 }, (_, index) => {
  const n = index + 1;
  const id = String(n);
  return [
    { id, type: "json", data: { n, text: "é€𝄞" } },
    { id, type: "message", data: `${n}: é€𝄞\nsecond line` },
    { id, type: "bytes", data: new TextEncoder().encode(`bytes ${n}`) },
    { id, type: "empty", data: "" },
  ][n % 4];
});

/** Reads a connection to its end. */
export async function readAll(push, limit = 120_000) {
  const items = [];
  const timer = setTimeout(() => push.close(), limit);
  try {
    for await (const item of push) items.push(item);
  } finally {
    clearTimeout(timer);
  }
  return items;
}

/** Compares events with those of the feed. Without base64, an event stream carries bytes as text. */
export function assertIsFeed(items, message) {
  const plain = items.map(({ id, type, data, gap }) => (gap ? { gap } : { id, type, data: asBytes(type, data) }));
  assert.deepEqual(plain, FEED, message);
}

function asBytes(type, data) {
  return type === "bytes" && typeof data === "string" ? new TextEncoder().encode(data) : data;
}

/** A proxy in front of a server, which cuts connections. */
export class CuttingProxy {
  #server;
  #sockets = new Set();
  /** How many bytes the next connections may receive. Without a number, a connection is not cut. */
  budgets = [];
  /** Requests that contain this are cut off. */
  refused = /$^/;
  /** How many bytes all connections have received. */
  received = 0;
  /** How many connections there were. */
  connections = 0;

  static async to(target) {
    const { hostname, port } = new URL(target);
    const proxy = new CuttingProxy();
    proxy.#server = createServer((client) => proxy.#connect(client, hostname, port));
    await new Promise((listening) => proxy.#server.listen(0, "127.0.0.1", listening));
    return proxy;
  }

  #connect(client, hostname, port) {
    this.connections++;
    let budget = this.budgets.shift() ?? Infinity;
    const server = connectSocket(Number(port), hostname);
    const end = () => {
      client.destroy();
      server.destroy();
    };
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.setNoDelay(true);
      socket.on("error", end).on("close", () => {
        this.#sockets.delete(socket);
        end();
      });
    }
    client.on("data", (bytes) => (this.refused.test(bytes) ? end() : server.write(bytes)));
    server.on("data", (bytes) => {
      const passed = bytes.subarray(0, budget);
      budget -= passed.length;
      this.received += passed.length;
      client.write(passed, () => {
        if (budget <= 0) client.resetAndDestroy();
      });
    });
    if (budget <= 0) end();
  }

  url(path) {
    return `http://127.0.0.1:${this.#server.address().port}${path}`;
  }

  cut() {
    for (const socket of this.#sockets) socket.destroy();
  }

  close() {
    this.#server.close();
    this.cut();
  }
}

export const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Waits for a condition, which may return a promise. */
export async function until(condition) {
  while (!(await condition())) await wait(20);
}

/** The whole numbers from `from` to `to`. */
export const range = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

/** Returns names of topics that no other test has, also if the server is used again. */
export const namesOf = (...words) => words.map((word) => `${word}-${randomUUID()}`);

/** Resolves with the first value of an event of a connection that a condition accepts. */
export function next(push, name, condition = () => true) {
  return new Promise((resolve) => {
    const remove = push.on(name, (value) => {
      if (!condition(value)) return;
      remove();
      resolve(value);
    });
  });
}

/** Runs `task` for each item, at most `count` at the same time. */
export async function inParallel(count, items, task) {
  const rest = items[Symbol.iterator]();
  const worker = async () => {
    for (const item of rest) await task(item);
  };
  await Promise.all(Array.from({ length: count }, worker));
}
