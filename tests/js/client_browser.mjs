// The JavaScript client in a browser: each transport, and connections that tabs share.
//
//   SERVER=http://127.0.0.1:3000 node tests/js/client_browser.mjs chromium|firefox
//
// SERVER is the address of the server of tests/js_client.rs. The tabs of Chromium are tabs; those of Firefox are frames of one page.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { setTimeout } from "node:timers/promises";
import { codeOf } from "./client/docs.mjs";

const { SERVER } = process.env;
const [, , name] = process.argv;
assert.ok(SERVER && ["chromium", "firefox"].includes(name), "usage: SERVER=ADDRESS client_browser.mjs chromium|firefox");

/** What any one condition may take, in milliseconds: far above what it needs on a busy machine. */
const PATIENCE = 120_000;

/** The lease of shared connections, in milliseconds. */
const LEASE = 400;

const publish = async (text) => (await fetch(new URL("/publish", SERVER), { method: "POST", body: text })).text();
const subscribers = async () => Number(await (await fetch(new URL("/subscribers", SERVER))).text());

async function until(what, read, condition) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const value = await read();
    if (condition(value)) return value;
    assert.ok(Date.now() < end, `${what}: not within ${PATIENCE} ms: ${JSON.stringify(value)}`);
    await setTimeout(50);
  }
}

/** Tabs of Chromium. */
class ChromiumTabs {
  static async start() {
    const { Browser } = await import("./browser.mjs");
    const tabs = new ChromiumTabs();
    tabs.browser = await Browser.start();
    tabs.driver = tabs.browser.driver;
    return tabs;
  }

  async open() {
    if (this.first) {
      await this.driver.switchTo().window(this.first);
      await this.driver.switchTo().newWindow("tab");
    }
    await this.driver.get(`${SERVER}/`);
    const handle = await this.driver.getWindowHandle();
    this.first ??= handle;
    const evaluate = async (expression) => {
      await this.driver.switchTo().window(handle);
      return JSON.parse(await this.driver.executeAsyncScript(
        `const done = arguments[0]; Promise.resolve(${expression}).then((value) => done(JSON.stringify(value ?? null)), (e) => done(JSON.stringify(String(e))))`));
    };
    const close = async () => {
      await this.driver.switchTo().window(handle);
      await this.driver.close();
    };
    const reload = async () => {
      await this.driver.switchTo().window(handle);
      await this.driver.get(`${SERVER}/`);
    };
    /** Leaves the page, which the browser keeps for the back button. */
    const leave = async () => {
      await this.driver.switchTo().window(handle);
      await this.driver.executeScript("location.href = '/client/core.mjs'");
    };
    const back = async () => {
      await this.driver.switchTo().window(handle);
      await this.driver.navigate().back();
    };
    return { evaluate, reload, leave, back, close };
  }

  close() {
    return this.browser.close();
  }
}

/** Frames of one page in Firefox. */
class FirefoxFrames {
  #count = 0;

  static async start() {
    const { Firefox } = await import("./firefox.mjs");
    const frames = new FirefoxFrames();
    frames.firefox = await Firefox.start();
    await frames.firefox.get(`${SERVER}/`);
    return frames;
  }

  async open() {
    const id = `frame${this.#count++}`;
    const run = async (expression) => JSON.parse(await this.firefox.evaluate(`Promise.resolve(${expression}).then((value) => JSON.stringify(value ?? null))`));
    await run(`new Promise((loaded) => {
      const frame = Object.assign(document.createElement("iframe"), { id: "${id}", src: "/", onload: () => loaded() });
      document.body.append(frame);
    })`);
    const evaluate = (expression) => run(`document.getElementById("${id}").contentWindow.eval(${JSON.stringify(expression)})`);
    return { evaluate, close: () => run(`document.getElementById("${id}").remove()`) };
  }

  close() {
    return this.firefox.close();
  }
}

/** A tab with a connection to the channel. */
class Tab {
  static async open(tabs, module, options) {
    const tab = new Tab();
    Object.assign(tab, await tabs.open());
    await tab.evaluate(`import("/dist/${module}.js").then(({ connect }) => {
      window.seen = [];
      window.push = connect("/channel", ${JSON.stringify(options)});
      push.on("event", ({ data }) => seen.push(data));
      push.on("gap", ({ reason }) => seen.push("gap " + reason));
      push.on("error", ({ message }) => console.log(message));
    })`);
    return tab;
  }

  seen() {
    return this.evaluate("seen");
  }

  /** Waits until the tab has seen these numbers, each once and in order. */
  async hasSeen(from, to) {
    const expected = Array.from({ length: to - from + 1 }, (_, index) => from + index);
    const seen = await until(`${from} to ${to}`, () => this.seen(), (seen) => seen.length >= expected.length);
    assert.deepEqual(seen, expected);
  }

  isLeader() {
    return this.evaluate("push.transport != null");
  }

  isOpen() {
    return until("open", () => this.evaluate("push.state"), (state) => state === "open");
  }
}

let last = 0;
async function publishNumbers(count) {
  for (let n = 0; n < count; n++) await publish(String(++last));
  return last;
}

async function eachTransportDelivers(tabs) {
  const tab = await tabs.open();
  for (const transports of [["websocket"], ["sse"], ["long-poll"], undefined]) {
    const ids = await tab.evaluate(`import("/dist/index.js").then(async ({ connect }) => {
      const ids = [];
      for await (const { id } of connect("/feed", { transports: ${JSON.stringify(transports)} })) ids.push(id);
      return ids;
    })`);
    assert.deepEqual(ids, Array.from({ length: 12 }, (_, index) => String(index + 1)), `${transports}`);
  }
  assert.equal(await tab.evaluate("sessionStorage.length"), 0, "the only transport is not remembered");
  await tab.evaluate(`import("/dist/index.js").then(async ({ connect }) => {
    for await (const _ of connect("/ending")) continue;
  })`);
  assert.equal(await tab.evaluate("sessionStorage.length"), 1, "what worked is remembered");
  return tab;
}

async function eachTransportChangesTopics(tab) {
  const publishTo = async (topic, text) => fetch(new URL(`/topics/${topic}`, SERVER), { method: "POST", body: text });
  for (const transport of ["websocket", "sse", "long-poll"]) {
    const [first, second] = ["first", "second"].map((word) => `${word}-${randomUUID()}`);
    await publishTo(second, "1");
    await tab.evaluate(`import("/dist/topics.js").then(({ connect }) => {
      window.texts = [];
      window.topics = connect("/topics", { topics: ["${first}"], transports: ["${transport}"] });
      topics.on("event", ({ topic, data }) => texts.push(topic + " " + data));
      return new Promise((resolve) => topics.on("cursor", resolve));
    })`);
    await tab.evaluate(`topics.subscribe("${second}")`);
    const hasSeen = (...expected) => until(expected.at(-1), () => tab.evaluate("texts"), (texts) => texts.length >= expected.length)
      .then((texts) => assert.deepEqual(texts, expected));
    await hasSeen(`${second} 1`);
    await publishTo(first, "2");
    await publishTo(second, "3");
    await hasSeen(`${second} 1`, `${first} 2`, `${second} 3`);
    await tab.evaluate("topics.close()");
  }
}

/** The network of one tab of Chromium goes and comes. */
async function networkGoesAndComes(tabs) {
  const setOffline = (offline) =>
    tabs.driver.sendDevToolsCommand("Network.emulateNetworkConditions", { offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  for (const transports of [["websocket"], ["sse"], ["long-poll"]]) {
    const since = await publish("before");
    const tab = await Tab.open(tabs, "index", { since, transports });
    await tab.isOpen();
    await tabs.driver.sendDevToolsCommand("Network.enable", {});
    await setOffline(true);
    for (const text of ["1", "2"]) await publish(text);
    await setOffline(false);
    await publish("3");
    await tab.hasSeen(1, 3);
    await tab.close();
  }
}

/** A page that is kept for the back button has no connection, and misses nothing. */
async function pageComesBack(tabs) {
  for (const transports of [["websocket"], ["sse"], ["long-poll"]]) {
    const since = await publish("before");
    const tab = await Tab.open(tabs, "index", { since, transports });
    await tab.evaluate("void addEventListener('pageshow', ({ persisted }) => (window.isRestored = persisted))");
    await publish("1");
    await tab.hasSeen(1, 1);
    await tab.leave();
    await until("no subscriber", subscribers, (count) => count === 0);
    await publish("2");
    await tab.back();
    await publish("3");
    await tab.hasSeen(1, 3);
    assert.equal(await tab.evaluate("isRestored"), true, "the page was kept");
    await tab.close();
  }
}

/** The page for htmx that docs/clients.md shows, with the client as a script. */
async function htmxSwaps(tabs) {
  const htmx = readFileSync(new URL("node_modules/htmx.org/dist/htmx.min.js", import.meta.url), "utf8");
  const page = codeOf("htmx, which swaps HTML that the server sends:").replace('"/tower-push.iife.js"', '"/dist/tower-push.iife.js"').replace('"/news"', '"/channel"');
  const tab = await tabs.open();
  const html = JSON.stringify(`<script>${htmx}</script>${page}`).replaceAll("<", "\\u003c");
  await tab.evaluate(`(document.open(), document.write(${html}), document.close())`);
  await until("one subscriber", subscribers, (count) => count === 1);
  await publish("<li>one</li>");
  await publish("<li>two</li>");
  const list = await until("two items", () => tab.evaluate("news.innerHTML"), (html) => html.includes("two"));
  assert.match(list, /<li.*>one<\/li><li.*>two<\/li>\s*$/);
  await tab.close();
}

async function leaderOf(tabs) {
  const leaders = [];
  for (const tab of tabs) if (await tab.isLeader()) leaders.push(tab);
  return leaders;
}

async function tabsShareOneConnection(tabs) {
  const since = await publish("0");
  const options = { shared: "ada", since, lease: LEASE };
  const open = [];
  for (let count = 0; count < 3; count++) open.push(await Tab.open(tabs, "shared", options));
  for (const tab of open) await tab.isOpen();
  await publishNumbers(10);
  for (const tab of open) await tab.hasSeen(1, 10);
  assert.equal((await leaderOf(open)).length, 1, "one leader");
  await until("one subscriber", subscribers, (count) => count === 1);

  // Another identity has a connection of its own.
  const other = await Tab.open(tabs, "shared", { ...options, shared: "ben" });
  await other.hasSeen(1, 10);
  await until("two subscribers", subscribers, (count) => count === 2);
  await other.close();
  await until("one subscriber", subscribers, (count) => count === 1);

  // A tab that is opened later begins where the others are, or at its cursor, which disturbs nobody.
  const late = await Tab.open(tabs, "shared", { ...options, since: undefined });
  await late.isOpen();
  const fromCursor = await Tab.open(tabs, "shared", options);
  await fromCursor.hasSeen(1, 10);
  await publishNumbers(5);
  await late.hasSeen(11, 15);
  for (const tab of [...open, fromCursor]) await tab.hasSeen(1, 15);
  await late.close();
  await fromCursor.close();
  return open;
}

/** Stops a page without telling it before: it waits for the answer to a synchronous request. Returns a function that ends the wait. */
async function freeze(tab) {
  const server = createServer();
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const request = async () => {
    const [, response] = await once(server, "request");
    return () => response.writeHead(200, { "access-control-allow-origin": "*" }).end();
  };
  const url = `http://127.0.0.1:${server.address().port}/`;
  const asynchronous = request();
  // The script must have returned before the page stops.
  await tab.evaluate(`void fetch("${url}").then(() => {
    const request = new XMLHttpRequest();
    request.open("GET", "${url}", false);
    request.send();
  })`);
  const answer = await asynchronous;
  const synchronous = request();
  answer();
  const thaw = await synchronous;
  return () => {
    thaw();
    server.close();
    server.closeAllConnections();
  };
}

async function frozenLeaderIsReplaced(open) {
  const [leader] = await leaderOf(open);
  const others = open.filter((tab) => tab !== leader);
  const thaw = await freeze(leader);
  const before = last;
  await publishNumbers(10);
  for (const tab of others) await tab.hasSeen(1, before + 10);
  assert.equal((await leaderOf(others)).length, 1, "another leader");
  thaw();
  for (const tab of open) await tab.hasSeen(1, before + 10);
  await until("one leader", () => leaderOf(open), (leaders) => leaders.length === 1 && leaders[0] !== leader);
  await publishNumbers(5);
  for (const tab of open) await tab.hasSeen(1, last);
}

/** A tab with topics of its own, which shares a connection with the other tabs. */
class TopicTab {
  static async open(tabs, topics, name) {
    const tab = new TopicTab();
    Object.assign(tab, await tabs.open());
    tab.topics = topics;
    tab.options = { shared: name, topics, lease: LEASE };
    await tab.connect();
    return tab;
  }

  connect() {
    return this.evaluate(`import("/dist/shared-topics.js").then(({ connect }) => {
      window.seen = {};
      window.push = connect("/topics", ${JSON.stringify(this.options)});
      const add = (topic, value) => (seen[topic] ??= []).push(value);
      push.on("message", ({ topic, topics, data }) => (topics ?? [topic]).forEach((topic) => add(topic, data)));
      push.on("gap", ({ reason, topic }) => (topic ? [topic] : push.topics).forEach((topic) => add(topic, reason)));
      push.on("error", ({ message }) => console.log(message));
    })`);
  }

  /** Waits until the tab has seen these numbers of each of its topics, each once and in order. */
  async hasSeen(from, to) {
    const expected = Array.from({ length: to - from + 1 }, (_, index) => from + index);
    for (const topic of this.topics) {
      const seen = await until(`${topic}: ${from} to ${to}`, () => this.evaluate(`seen["${topic}"] ?? []`), (seen) => seen.length >= expected.length);
      assert.deepEqual(seen, expected, topic);
    }
  }

  isLeader() {
    return this.evaluate("push.transport != null");
  }
}

/** Tabs with different topics share a connection, of which the leader is frozen, reloaded and closed. */
async function tabsShareTopics(tabs, canFreeze) {
  const [a, b, c] = ["a", "b", "c"].map((word) => `${word}-${randomUUID()}`);
  let last = 0;
  const publishToAll = async (count) => {
    for (let n = 0; n < count; n++) await fetch(new URL(`/topics/${a},${b},${c}`, SERVER), { method: "POST", body: String(++last) });
  };
  const subscribersOf = async (topic) => Number(await (await fetch(new URL(`/topics/${topic}`, SERVER))).text());
  const haveOneSubscriber = async (...topics) => {
    for (const topic of topics) await until(`one subscriber of ${topic}`, () => subscribersOf(topic), (count) => count === 1);
  };
  const name = `topics ${a}`;
  const open = [];
  await publishToAll(1);
  for (const topics of [[a, b], [b, c], [c, a]]) open.push(await TopicTab.open(tabs, topics, name));
  for (const tab of open) await tab.hasSeen(1, last);
  await haveOneSubscriber(a, b, c);
  await publishToAll(5);
  for (const tab of open) await tab.hasSeen(1, last);
  const oneLeader = (leaders) => leaders.length === 1;
  let [leader] = await until("one leader", () => leaderOf(open), oneLeader);
  if (canFreeze) {
    const others = open.filter((tab) => tab !== leader);
    const thaw = await freeze(leader);
    await publishToAll(10);
    for (const tab of others) await tab.hasSeen(1, last);
    thaw();
    for (const tab of open) await tab.hasSeen(1, last);
    [leader] = await until("another leader", () => leaderOf(open), (leaders) => oneLeader(leaders) && leaders[0] !== leader);
    await publishToAll(5);
    for (const tab of open) await tab.hasSeen(1, last);
    // A page that is reloaded begins with the last value of each topic.
    await leader.reload();
    await publishToAll(3);
    const reloaded = leader;
    for (const tab of open) if (tab !== reloaded) await tab.hasSeen(1, last);
    const first = last;
    await reloaded.connect();
    await reloaded.hasSeen(first, last);
    await publishToAll(3);
    await reloaded.hasSeen(first, last);
    await reloaded.close();
    open.splice(open.indexOf(reloaded), 1);
  }
  while (open.length > 1) {
    const [leader] = await until("a leader", () => leaderOf(open), oneLeader);
    await publishToAll(3);
    await leader.close();
    open.splice(open.indexOf(leader), 1);
    await publishToAll(3);
    for (const tab of open) await tab.hasSeen(1, last);
  }
  // Topics that no tab has any more have left the connection.
  await haveOneSubscriber(...open[0].topics);
  const gone = [a, b, c].find((topic) => !open[0].topics.includes(topic));
  await until(`no subscriber of ${gone}`, () => subscribersOf(gone), (count) => count === 0);
  await open[0].close();
}

async function leadersMayClose(open) {
  while (open.length > 1) {
    const [leader] = await until("a leader", () => leaderOf(open), (leaders) => leaders.length === 1);
    await publishNumbers(3);
    await leader.close();
    open.splice(open.indexOf(leader), 1);
    await publishNumbers(3);
    for (const tab of open) await tab.hasSeen(1, last);
  }
}

const tabs = await (name === "chromium" ? ChromiumTabs : FirefoxFrames).start();
try {
  await eachTransportChangesTopics(await eachTransportDelivers(tabs));
  if (name === "chromium") {
    await networkGoesAndComes(tabs);
    await pageComesBack(tabs);
    await htmxSwaps(tabs);
  }
  const open = await tabsShareOneConnection(tabs);
  // The frames of one page run or are frozen together.
  if (name === "chromium") await frozenLeaderIsReplaced(open);
  await leadersMayClose(open);
  await tabsShareTopics(tabs, name === "chromium");
} finally {
  await tabs.close();
}
