// Drives the examples' page in headless Chromium, and asserts on what a user sees.
//
//   node tests/js/page.mjs http://127.0.0.1:3000 [folder for screenshots]
//
// The order of cut connections is random. A run that fails prints its seed, and SEED=… repeats that order.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { Browser } from "./browser.mjs";
import { randomFrom } from "./random.mjs";
import { Wire } from "./wire.mjs";

const [, , address, screenshots] = process.argv;
assert.ok(address, "usage: page.mjs ADDRESS [SCREENSHOTS]");

/** What any one condition may take, in milliseconds: far above what it needs on a busy machine. */
const PATIENCE = 20_000;
const OVERALL = 240_000;
const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);

const TITLES = [
  "Server-Sent Events",
  "NDJSON",
  "JSON text sequences",
  "Multipart",
  "Multipart, replacing",
  "Raw lines",
  "Long polling",
  "Durable Streams",
  "WebSocket",
  "WebSocket, plain",
  "WebSocket, compressed",
];

/** These have no ids. */
const PLAIN = ["Raw lines", "WebSocket, plain"];
const isPlain = (title) => PLAIN.includes(title);
const isNumbered = (title) => !isPlain(title);

/** How often each panel's plug is pulled. */
const PULLS = 3;

class Page {
  #driver;

  constructor(driver) {
    this.#driver = driver;
  }

  /** What each panel shows, by its title, read all at the same time. */
  async panels() {
    const read = () => {
      const seen = (element) => element.innerText.trim();
      return [...document.querySelectorAll("article")].map((article) => ({
        title: seen(article.querySelector("h2")),
        kind: seen(article.querySelector("code")),
        state: seen(article.querySelector("[role=status]")),
        buttons: [...article.querySelectorAll("button")].map(seen).join(", "),
        ...Object.fromEntries(
          [...article.querySelectorAll("dt")].map((dt) => [seen(dt), seen(dt.nextElementSibling)]),
        ),
      }));
    };
    const panels = await this.#driver.executeScript(read);
    return Object.fromEntries(panels.map((panel) => [panel.title, new Seen(panel)]));
  }

  /** What the ledger of all panels shows. */
  async ledger() {
    const read = () =>
      [...document.querySelectorAll(".ledger dt")].map((dt) => [dt.innerText, Number(dt.nextElementSibling.innerText)]);
    return Object.fromEntries(await this.#driver.executeScript(read));
  }

  /** The same once it counts so many events: it is painted a frame after the panels. */
  async ledgerOf(received) {
    let ledger;
    const counts = async () => (ledger = await this.ledger()).Received >= received;
    await this.#driver.wait(counts, PATIENCE, `the ledger has not the panels' ${received}`, 50);
    return ledger;
  }

  /** Waits until the panels look as they should. */
  async until(what, condition) {
    let panels;
    const looks = async () => {
      panels = await this.panels();
      return condition(panels);
    };
    try {
      await this.#driver.wait(looks, PATIENCE, undefined, 50);
    } catch (error) {
      throw new Error(`${what}: not within ${PATIENCE} ms (${error.message})\n${inspect(panels)}`);
    }
    return panels;
  }

  /** Presses the buttons of these panels, as a person would, by what is written on them. */
  async press(label, titles) {
    for (const title of titles) {
      const path = `//article[.//h2[.="${title}"]]//button[.="${label}"]`;
      await this.#driver.findElement({ xpath: path }).click();
    }
  }
}

/** One panel as seen. */
class Seen {
  constructor(fields) {
    Object.assign(this, fields);
  }
  get received() {
    return Number(this.Received);
  }
  get clock() {
    return this["Clock, UTC"];
  }
  get lastId() {
    return this["Last id"];
  }
  get number() {
    return Number(this.lastId.split("-")[1]);
  }
}

const inspect = (panels) => JSON.stringify(panels, null, 1);
const all = (panels, condition) => TITLES.every((title) => panels[title] && condition(panels[title]));

function assertNothingLost(panels) {
  for (const [title, panel] of Object.entries(panels)) {
    const none = isPlain(title) ? "–" : "0";
    assert.equal(panel.Missed, none, `${title}: missed\n${inspect(panels)}`);
    assert.equal(panel.Repeated, none, `${title}: repeated\n${inspect(panels)}`);
    assert.equal(panel.Gaps, "0", `${title}: gaps\n${inspect(panels)}`);
  }
}

async function allPanelsComeAlive(page) {
  const first = await page.until("eleven panels are live, and show everything", (panels) =>
    Object.keys(panels).length === 11 &&
    all(panels, (p) => p.state === "live" && p.buttons === "Drop, Pull the plug" && p.received >= 2 && /^0\.\d{4}$/.test(p.Random)));
  for (const [title, panel] of Object.entries(first)) {
    assert.match(panel.clock, /^\d\d:\d\d:\d\d$/, title);
    assert.match(panel.lastId, isPlain(title) ? /^no ids/ : /^[0-9a-f]{8}-\d+$/, title);
  }
  assert.equal(first["WebSocket"].kind, "ws · json.tower-push");
  assert.equal(first["WebSocket, plain"].kind, "ws");
  assert.equal(first["WebSocket, compressed"].kind, "ws · json.tower-push · permessage-deflate");
  await page.until("counts grow and clocks advance", (panels) =>
    all(panels, (p) => p.received > first[p.title].received && p.clock > first[p.title].clock));
}

/** Drops some panels while the others run on, and lets them catch up. */
async function droppedPanelsResume(page, dropped, witness, meanwhile = async () => {}) {
  await page.press("Drop", dropped);
  const before = await page.until("the panels are dropped", (panels) =>
    dropped.every((title) => panels[title].state === "dropped" && panels[title].buttons === "Resume, Pull the plug"));
  const during = await page.until("the others run on", (panels) =>
    panels[witness].received >= before[witness].received + 4);
  for (const title of dropped) {
    assert.equal(during[title].received, before[title].received, `${title} stands still`);
    assert.equal(during[title].clock, before[title].clock, `${title} stands still`);
    assert.equal(during[title].state, "dropped", title);
  }
  await meanwhile();

  await page.press("Resume", dropped);
  const after = await page.until("the panels are live again, and where the others are", (panels) =>
    dropped.every((title) => {
      const isLive = panels[title].state === "live" && panels[title].received > before[title].received;
      return isLive && (isPlain(title) || panels[title].number >= during[witness].number);
    }));
  for (const title of dropped.filter(isNumbered)) {
    const told = after[title].received - before[title].received;
    assert.equal(told, after[title].number - before[title].number, `${title} was told of each event once`);
  }
  assertNothingLost(after);
}

/** Each panel three times, in an order and at times that the seed tells, so that many are unplugged at once. */
async function pulledPlugsLoseNothing(page, random, meanwhile) {
  const before = await page.panels();
  const ledgerBefore = await page.ledger();
  for (let round = 0; round < PULLS; round++) {
    for (const title of shuffled(TITLES, random)) {
      await page.until(`${title} has a plug to pull`, (panels) => panels[title].buttons === "Drop, Pull the plug");
      await page.press("Pull the plug", [title]);
      await setTimeout(random() * 500);
    }
    if (round === 0) await meanwhile();
  }
  const after = await page.until("all are live again by themselves, and at the same event", (panels) =>
    all(panels, (p) => p.state === "live" && p.received > before[p.title].received) &&
    new Set(Object.values(panels).filter((p) => isNumbered(p.title)).map((p) => p.lastId)).size === 1);
  const told = (title) => after[title].received - before[title].received;
  const moved = after[TITLES[0]].number - before[TITLES[0]].number;
  for (const title of TITLES.filter(isNumbered)) {
    const own = after[title].number - before[title].number;
    assert.equal(told(title), own, `${title} was told of each event once\n${inspect({ before, after })}`);
  }
  for (const title of PLAIN) {
    assert.ok(told(title) < moved, `${title} has no ids, and loses what is sent while its plug is out`);
  }
  assertNothingLost(after);

  const sum = Object.values(after).reduce((sum, panel) => sum + panel.received, 0);
  const ledger = await page.ledgerOf(sum);
  const { "Plugs pulled": plugs, Received: _, ...faults } = ledger;
  assert.deepEqual(faults, { Repeated: 0, Missed: 0, Gaps: 0 });
  assert.equal(plugs - ledgerBefore["Plugs pulled"], PULLS * TITLES.length);
}

function shuffled(list, random) {
  const rest = [...list];
  return list.map(() => rest.splice(Math.floor(random() * rest.length), 1)[0]);
}

async function lostConnectionsComeBack(page, wire) {
  const before = await page.panels();
  wire.cut();
  await page.until("the panels notice", (panels) => all(panels, (p) => p.state === "reconnecting"));
  wire.mend();
  const after = await page.until("the panels come back by themselves", (panels) =>
    all(panels, (p) => p.state === "live" && p.received > before[p.title].received + 2));
  assertNothingLost(after);
}

/** The page's own parsers, on streams cut at every byte, characters of several bytes among them. */
async function parsersReadAnyChunks(driver) {
  const streams = [
    ["application/x-ndjson", '\n{"id":"1","event":"é","data":"€ 𝄞"}\n\n{"id":"2","gap":{"reason":"lagged"}}\n{"id":"3"}\n{"da'],
    ["application/json-seq", '\x1e\x1e{"id":"1","event":"é","data":"€ 𝄞"}\n\x1e{"cut\x1e{"id":"2","gap":{"reason":"lagged"}}\n\x1e{"id":"3"}\n\x1e{'],
    ["text/plain; charset=utf-8", "\n€ 𝄞\n\né\nno"],
    [
      "multipart/mixed; boundary=B",
      "--B\r\nContent-Type: application/vnd.tower-push+json\r\nContent-Length: 10\r\n\r\n" + '{"id":"0"}' + "\r\n--B\r\n" +
        "Content-Type: text/plain; charset=utf-8\r\nEvent-ID: 1\r\nEvent-Type: é\r\n\r\n€\r\n--\r\n𝄞\r\n--B\r\n" +
        "Content-Type: application/json\r\n\r\n[1]\r\n--B\r\nContent-Type: text/plain\r\n\r\n\r\n--B--\r\n",
    ],
    [
      "multipart/x-mixed-replace; boundary=B",
      "--B\r\nCursor: 0\r\nHeartbeat: 1\r\nContent-Type: text/plain; charset=utf-8\r\nEvent-ID: 1\r\n\r\n€ 𝄞\r\n--B\r\n" +
        'Gap: {"reason":"lagged","resumed":"7"}\r\nEnd: {"finished":false}\r\n\r\n\r\n--B--\r\n',
    ],
  ];
  const expected = [
    [{ id: "1", event: "é", data: "€ 𝄞" }, { id: "2", gap: { reason: "lagged" } }, { id: "3" }],
    [{ id: "1", event: "é", data: "€ 𝄞" }, { id: "2", gap: { reason: "lagged" } }, { id: "3" }],
    [{ data: "€ 𝄞" }, { data: "é" }],
    [{ id: "0" }, { id: "1", event: "é", data: "€\r\n--\r\n𝄞" }, { data: [1] }, { data: "" }],
    [{ id: "0" }, { id: "1", data: "€ 𝄞" }, { id: "7", gap: { reason: "lagged", resumed: "7" } }, { end: { finished: false } }],
  ];
  const parse = async (streams, done) => {
    const { parserFor } = await import("/page.js");
    const results = streams.map(([contentType, stream]) => {
      const bytes = new TextEncoder().encode(stream);
      const pieces = (size, first) => {
        const cuts = [bytes.slice(0, first)];
        for (let at = first; at < bytes.length; at += size) cuts.push(bytes.slice(at, at + size));
        return cuts;
      };
      const splits = [pieces(1, 0), ...Array.from(bytes, (_, at) => pieces(bytes.length, at))];
      const records = splits.map((chunks) => {
        const parser = parserFor(contentType);
        return JSON.stringify(chunks.flatMap((chunk) => [...parser.push(chunk)]));
      });
      return [...new Set(records)];
    });
    done(results);
  };
  const results = await driver.executeAsyncScript(parse, streams);
  results.forEach((different, i) => {
    const [contentType] = streams[i];
    assert.equal(different.length, 1, `${contentType}: the split matters:\n${different.join("\n")}`);
    assert.deepEqual(JSON.parse(different[0]), expected[i], contentType);
  });
}

async function phoneWidthFits(browser) {
  await browser.viewport({ width: 390, height: 844, deviceScaleFactor: 2, mobile: true });
  const [inner, scroll, panels] = await browser.driver.executeScript(() => [
    window.innerWidth,
    document.documentElement.scrollWidth,
    [...document.querySelectorAll("article")].map((article) => article.getBoundingClientRect().width),
  ]);
  assert.equal(inner, 390, "the page is laid out for the phone");
  assert.ok(scroll <= inner, `scrolls sideways: ${scroll} px`);
  for (const width of panels) assert.ok(width >= inner - 40, `a panel is ${width} px wide`);
}

async function screenshot(browser, name) {
  if (!screenshots) return;
  await writeFile(join(screenshots, `${name}.png`), await browser.screenshot());
}

async function screenshotsOf(browser, name) {
  for (const scheme of ["light", "dark"]) {
    await browser.prefers(scheme);
    await screenshot(browser, `${name}-${scheme}`);
  }
}

async function promises(browser, wire) {
  const { driver } = browser;
  const page = new Page(driver);
  await driver.get(wire.address);
  await allPanelsComeAlive(page);
  await droppedPanelsResume(page, TITLES.slice(0, 6), TITLES[6], () => screenshot(browser, "desktop-dropped"));
  await droppedPanelsResume(page, TITLES.slice(6), TITLES[0]);
  await pulledPlugsLoseNothing(page, randomFrom(SEED), () => screenshot(browser, "desktop-unplugged"));
  await parsersReadAnyChunks(driver);
  assert.deepEqual(await browser.errors(), [], "errors in the console");
  await lostConnectionsComeBack(page, wire);

  await screenshotsOf(browser, "desktop");
  await phoneWidthFits(browser);
  await screenshotsOf(browser, "phone");
}

async function deadline() {
  await setTimeout(OVERALL, undefined, { ref: false });
  throw new Error(`not done within ${OVERALL} ms`);
}

const wire = await Wire.to(address);
let browser;
try {
  browser = await Browser.start();
  await Promise.race([promises(browser, wire), deadline()]);
} catch (error) {
  console.error(`SEED=${SEED}`);
  throw error;
} finally {
  await browser?.close();
  wire.close();
}
