// Drives the page of the cluster example in headless Chromium: the pages of two nodes show the events of both.
//
//   node tests/js/cluster.mjs http://127.0.0.1:3000 http://127.0.0.1:3001
//
// The addresses are those of two nodes that share a broker.

import assert from "node:assert/strict";
import { Browser } from "./browser.mjs";
import { PageTab } from "./page_tab.mjs";
import { Wire } from "./wire.mjs";

const [, , address, otherAddress] = process.argv;
assert.ok(otherAddress, "usage: cluster.mjs ADDRESS OTHER_ADDRESS");

/** The state of a page, and its events, the oldest first. */
const look = () => ({
  state: document.querySelector("#state").textContent,
  lines: [...document.querySelectorAll("#list li")].map(({ textContent }) => textContent).reverse(),
});

/** Checks that the ticks of each node ascend by one, and returns the number of the nodes. */
function checkTicks({ lines }) {
  const last = new Map();
  for (const line of lines) {
    assert.doesNotMatch(line, /missing/);
    const [, number, node] = /^tick (\d+) of (.*)$/.exec(line) ?? [];
    if (!node) continue;
    if (last.has(node)) assert.equal(Number(number), last.get(node) + 1, lines.join("\n"));
    last.set(node, Number(number));
  }
  return last.size;
}

const browser = await Browser.start();
const wire = await Wire.to(address);
try {
  const tabs = [await PageTab.open(browser, wire.address, true), await PageTab.open(browser, otherAddress)];
  for (const tab of tabs) await tab.until("shows the events of both nodes", look, (seen) => checkTicks(seen) === 2);
  await tabs[0].type("#text", "hello\n");
  for (const tab of tabs) await tab.until("shows what the other page has published", look, ({ lines }) => lines.includes("hello"));
  assert.deepEqual(await browser.errors(), []);

  // The page continues on the other node, without a hole and without a repetition.
  wire.cut();
  await tabs[0].until("notices", look, ({ state }) => state !== "open");
  const before = await tabs[0].run(look);
  wire.moveTo(otherAddress);
  const after = await tabs[0].until("goes on", look, ({ lines }) => lines.length > before.lines.length + 3);
  assert.equal(checkTicks(after), 2);
  assert.deepEqual(after.lines.filter((line) => line === "hello"), ["hello"]);
} finally {
  await browser.close();
  wire.close();
}
