// Runs plain `fetch` loops over a long-poll in headless Chromium. Each loop must get every number once, in order.
//
//   node tests/js/long_poll.mjs http://127.0.0.1:3000/

import assert from "node:assert/strict";
import { Browser } from "./browser.mjs";

const [, , address] = process.argv;
assert.ok(address, "usage: long_poll.mjs ADDRESS");

const TIME = 4_000;

/** Runs in the page: one loop for each way to keep the place. */
async function loops(time, done) {
  const until = Date.now() + time;
  const numbers = (batch) => batch.filter((record) => "data" in record).map((record) => record.data);

  /** The browser's cache keeps it. */
  async function plain(url) {
    const got = [];
    let empty = 0;
    while (Date.now() < until) {
      const batch = await (await fetch(url)).json();
      got.push(...numbers(batch));
      if (batch.length === 0) empty++;
    }
    return { got, empty };
  }

  /** The page keeps it; now and then it gives a poll up. */
  async function own(url) {
    const got = [];
    let cursor, empty = 0;
    while (Date.now() < until) {
      const headers = cursor === undefined ? {} : { "Last-Event-ID": cursor };
      const giveUp = new AbortController();
      if (Math.random() < 0.2) setTimeout(() => giveUp.abort(), 20 * Math.random());
      try {
        const answer = await fetch(url, { headers, signal: giveUp.signal });
        const batch = await answer.json();
        cursor = answer.headers.get("Last-Event-ID");
        got.push(...numbers(batch));
        if (batch.length === 0) empty++;
      } catch (error) {
        if (error.name !== "AbortError") throw error;
      }
    }
    return { got, empty };
  }

  /** XMLHttpRequest, as $.ajax has it. */
  async function xhr(url) {
    const got = [];
    let empty = 0;
    while (Date.now() < until) {
      const batch = await new Promise((resolve, reject) => {
        const request = new XMLHttpRequest();
        request.onload = () => resolve(JSON.parse(request.responseText));
        request.onerror = reject;
        request.open("GET", url);
        request.send();
      });
      got.push(...numbers(batch));
      if (batch.length === 0) empty++;
    }
    return { got, empty };
  }

  try {
    const results = await Promise.all([plain("/poll?1"), own("/poll?2"), own("/poll?2"), xhr("/poll?3")]);
    done({ results });
  } catch (error) {
    done({ error: String(error) });
  }
}

const browser = await Browser.start();
const { driver } = browser;
try {
  await driver.manage().setTimeouts({ script: 30_000 });
  await driver.get(address);
  const { results, error } = await driver.executeAsyncScript(loops, TIME);
  assert.equal(error, undefined);
  for (const { got, empty } of results) {
    assert.ok(got.length > 30, `${got.length} numbers`);
    assert.ok(empty > 5, `${empty} polls without`);
    got.forEach((number, index) => assert.equal(number, got[0] + index));
  }
} finally {
  await browser.close();
}
