// Drives the page of the dashboard example in headless Chromium: topics are chosen in the page, and come over one connection.
//
//   node tests/js/dashboard.mjs http://127.0.0.1:3000 http://127.0.0.1:3001
//
// The second address is that of another server, which knows nothing of the first one: as after a restart.

import assert from "node:assert/strict";
import { Browser } from "./browser.mjs";
import { PageTab } from "./page_tab.mjs";
import { Wire } from "./wire.mjs";

const [, , address, nextAddress] = process.argv;
assert.ok(nextAddress, "usage: dashboard.mjs ADDRESS NEXT_ADDRESS");

const COUNT_SOCKETS = `globalThis.socketCount = 0;
globalThis.WebSocket = class extends WebSocket { constructor(...parameters) { super(...parameters); socketCount++; } };`;

/** The tiles of the page: the second of the last value of each topic, or null before the first value. */
const look = () => ({
  state: document.querySelector("#state").textContent,
  sockets: globalThis.socketCount,
  tiles: Object.fromEntries([...document.querySelectorAll(".tile")].map(({ dataset }) => [dataset.topic, dataset.second ?? null])),
});

const names = (seen) => Object.keys(seen.tiles).sort();
const hasValues = (count) => (seen) => names(seen).length === count && Object.values(seen.tiles).every((second) => second !== null);

const browser = await Browser.start();
const wire = await Wire.to(address);
try {
  await browser.driver.sendDevToolsCommand("Page.addScriptToEvaluateOnNewDocument", { source: COUNT_SOCKETS });
  const tab = await PageTab.open(browser, wire.address, true);
  await tab.until("shows three values", look, hasValues(3));

  // All others. Most values are those of the server's first second, because these machines are measured rarely: the last values come first.
  await tab.run(() => document.querySelectorAll("input:not(:checked)").forEach((box) => box.click()));
  const all = await tab.until("shows all values", look, hasValues(24));
  assert.equal(all.sockets, 1, "one connection");
  const live = await tab.until("goes on", look, (seen) => seen.tiles["machine/1"] !== all.tiles["machine/1"]);
  assert.equal(live.sockets, 1, "one connection");

  // The last topic stays.
  await tab.run(() => document.querySelectorAll("input:checked").forEach((box) => box.click()));
  assert.deepEqual(names(await tab.run(look)), ["machine/24"]);
  await tab.run(() => document.querySelector("input[value='machine/1']").click());
  const two = await tab.until("shows two values", look, hasValues(2));
  assert.deepEqual(names(two), ["machine/1", "machine/24"]);
  assert.equal(two.sockets, 1, "one connection");
  assert.deepEqual(await browser.errors(), []);

  // The server is restarted: the page comes back with its topics.
  wire.cut();
  await tab.until("notices", look, ({ state }) => state !== "open");
  const before = await tab.run(look);
  wire.moveTo(nextAddress);
  const after = await tab.until("goes on", look, (seen) => seen.state === "open" && seen.tiles["machine/1"] !== before.tiles["machine/1"]);
  assert.deepEqual(names(after), ["machine/1", "machine/24"]);
  await tab.run(() => document.querySelector("input[value='machine/2']").click());
  await tab.until("shows three values", look, hasValues(3));
} finally {
  await browser.close();
  wire.close();
}
