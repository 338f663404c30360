// Drives the chat example in headless Chromium: two browsers with two tabs each, one user in each tab.
//
//   node tests/js/chat.mjs http://127.0.0.1:3000 http://127.0.0.1:3001 [folder for screenshots]
//
// The second address is that of another server, which knows nothing of the first one: as after a restart.
//
// The order of messages and of cut connections is random. A run that fails prints its seed, and SEED=… repeats that order.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { Browser } from "./browser.mjs";
import { randomFrom } from "./random.mjs";
import { Wire } from "./wire.mjs";

const [, , address, nextAddress, screenshots] = process.argv;
assert.ok(nextAddress, "usage: chat.mjs ADDRESS NEXT_ADDRESS [SCREENSHOTS]");

/** What any one condition may take, in milliseconds: far above what it needs on a busy machine. */
const PATIENCE = 20_000;
const OVERALL = 180_000;
const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);

/** One person's tab. */
class Tab {
  #browser;
  #handle;
  name;

  static async open(browser, name, url, isFirst) {
    const tab = new Tab();
    tab.#browser = browser;
    tab.name = name;
    if (!isFirst) await browser.driver.switchTo().newWindow("tab");
    tab.#handle = await browser.driver.getWindowHandle();
    await browser.driver.get(url);
    const field = await tab.find("#name");
    await field.clear();
    await field.sendKeys(name);
    return tab;
  }

  async run(script, ...parameters) {
    await this.#browser.driver.switchTo().window(this.#handle);
    return this.#browser.driver.executeScript(script, ...parameters);
  }

  async find(css) {
    await this.#browser.driver.switchTo().window(this.#handle);
    return this.#browser.driver.findElement({ css });
  }

  /** Shows an empty page in place of the chat. */
  async goAway() {
    await this.run(() => location.assign("about:blank"));
  }

  async goBack() {
    await this.#browser.driver.switchTo().window(this.#handle);
    await this.#browser.driver.navigate().back();
  }

  async say(text) {
    await (await this.find("#text")).sendKeys(text, "\n");
  }

  /** What is to be seen. */
  look() {
    return this.run(() => {
      const seen = (element) => element.innerText.trim();
      const messages = (list) =>
        [...list.querySelectorAll("li:not(.note)")].map((line) => ({
          name: seen(line.querySelector("bdi")),
          text: seen(line.querySelector(".text")),
          isOwn: line.classList.contains("own"),
        }));
      return {
        state: seen(document.querySelector(".state")),
        heard: messages(document.querySelector("#heard")),
        unheard: messages(document.querySelector("#unheard")),
        notes: [...document.querySelectorAll("li.note")].map(seen),
        refused: seen(document.querySelector("#refused")),
      };
    });
  }

  async until(what, condition) {
    const end = Date.now() + PATIENCE;
    for (;;) {
      const seen = await this.look();
      if (condition(seen)) return seen;
      assert.ok(Date.now() < end, `${this.name}: ${what}: not within ${PATIENCE} ms\n${JSON.stringify(seen, null, 1)}`);
      await setTimeout(50);
    }
  }
}

const linesOf = ({ heard }) => heard.map(({ name, text }) => `${name}: ${text}`);

/** All have heard all of it, once, in one order, which is returned, and for each speaker is that in which it was said. */
async function allHear(tabs, said) {
  const expected = new Set(said);
  assert.equal(expected.size, said.length, "the test says nothing twice");
  let first;
  for (const tab of tabs) {
    const seen = await tab.until(`hears all ${said.length}`, ({ heard, unheard }) =>
      heard.length >= said.length && unheard.length === 0);
    const lines = linesOf(seen);
    first ??= lines;
    assert.deepEqual(lines, first, `${tab.name} hears in the order of ${tabs[0].name}`);
    assert.equal(new Set(lines).size, lines.length, `${tab.name} hears nothing twice: ${lines.join("\n")}`);
    assert.deepEqual([...lines].sort(), [...said].sort(), `${tab.name} hears all`);
    assert.deepEqual(seen.notes, [], `${tab.name} misses nothing`);
    for (const { name, isOwn } of seen.heard) assert.equal(isOwn, name === tab.name, "who speaks is known");
  }
  for (const { name } of tabs) {
    const by = (lines) => lines.filter((line) => line.startsWith(`${name}: `));
    assert.deepEqual(by(first), by(said), `what ${name} says is heard in its order`);
  }
  return first;
}

async function fourTalk(tabs, said) {
  for (const text of ["Good morning", "Is this one WebSocket?", "<b>not bold</b> & \"quoted\"", "שלום, 你好, é"]) {
    for (const tab of tabs) {
      await tab.say(text);
      said.push(`${tab.name}: ${text}`);
    }
  }
  await allHear(tabs, said);
}

/** They go on to talk, while the connections are cut and mended in between. */
async function cutConnectionsLoseNothing(tabs, wires, said, random) {
  for (let number = 0; number < 40; number++) {
    const tab = tabs[Math.floor(random() * tabs.length)];
    const wire = wires[Math.floor(random() * wires.length)];
    const isCut = random() < 0.3;
    if (isCut) wire.cut();
    await tab.say(`number ${number}`);
    said.push(`${tab.name}: number ${number}`);
    if (isCut) {
      await setTimeout(random() * 400);
      wire.mend();
    }
  }
  await allHear(tabs, said);
}

/** Not a cut in the middle of a word only, but a while without any network. */
async function whatIsSaidInTheDarkIsHeardLater(tabs, wires, said) {
  for (const wire of wires) wire.cut();
  for (const tab of tabs) {
    await tab.until("notices", ({ state }) => state === "reconnecting");
    await tab.say("anyone there?");
    said.push(`${tab.name}: anyone there?`);
    const { unheard } = await tab.look();
    assert.deepEqual(unheard.map(({ text }) => text), ["anyone there?"], "it is on the way");
  }
  for (const wire of wires) wire.mend();
  return allHear(tabs, said);
}

async function aPulledPlugLosesNothing([ada, ben, ...others], said) {
  await (await ada.find("#plug")).click();
  await ada.until("is unplugged", ({ state }) => state === "unplugged");
  await ben.say("while you were out");
  said.push(`${ben.name}: while you were out`);
  const { heard } = await ada.look();
  assert.equal(heard.length, said.length - 1, "nothing comes through a plug that is out");
  await allHear([ada, ben, ...others], said);
}

/** Only who has said it is told, and what was typed is not lost. */
async function nonsenseIsRefused([ada, ...others], said) {
  const tooLong = "x".repeat(1001);
  await ada.run((text) => {
    const field = document.querySelector("#text");
    field.removeAttribute("maxlength");
    field.value = text;
  }, tooLong);
  await ada.say("");
  await ada.until("is refused", ({ refused, unheard }) => /^Not sent: .*1000/.test(refused) && unheard.length === 0);
  assert.equal(await ada.run(() => document.querySelector("#text").value), tooLong);
  await ada.run(() => (document.querySelector("#text").value = ""));
  for (const tab of others) assert.equal((await tab.look()).refused, "");
  await allHear([ada, ...others], said);
}

/** A tab that shows another page is not counted, even if the browser keeps its old page for the back button. */
async function whoLeavesThePageIsNotCounted(tabs) {
  const [leaver, ...others] = tabs;
  await leaver.goAway();
  for (const tab of others) await tab.until("sees one less", ({ state }) => state === `live · ${others.length} here`);
  await leaver.goBack();
  await everyoneIsHere(tabs);
}

async function whoComesLaterHearsTheLast(browser, url, all) {
  const tab = await Tab.open(browser, "Eve", url, false);
  const seen = await tab.until("hears the last 50", ({ heard }) => heard.length >= 50);
  assert.deepEqual(linesOf(seen), all.slice(-50));
  await browser.driver.close();
}

/** The server is restarted, and its memory is lost. What is said meanwhile is on the way, and arrives. The pages tell of what is missing. */
async function restartedServerGoesOn(tabs, wires) {
  for (const wire of wires) wire.cut();
  for (const tab of tabs) {
    await tab.until("notices", ({ state }) => state === "reconnecting");
    await tab.say("after the restart");
  }
  for (const wire of wires) wire.moveTo(nextAddress);
  const expected = tabs.map(({ name }) => `${name}: after the restart`).sort();
  for (const tab of tabs) {
    const seen = await tab.until("hears all after the restart", ({ heard, unheard }) =>
      unheard.length === 0 && heard.filter(({ text }) => text === "after the restart").length === tabs.length);
    assert.deepEqual(linesOf(seen).slice(-tabs.length).sort(), expected, `${tab.name} hears each once`);
    assert.match(seen.notes.at(-1) ?? "", /opened anew/);
  }
  await everyoneIsHere(tabs);
}

async function everyoneIsHere(tabs) {
  for (const tab of tabs) await tab.until("sees all", ({ state }) => state === `live · ${tabs.length} here`);
}

async function screenshotsOf(browser, tab) {
  if (!screenshots) return;
  for (const width of [1280, 400]) {
    await browser.viewport({ width, height: 800, deviceScaleFactor: 1, mobile: width < 500 });
    for (const scheme of ["light", "dark"]) {
      await browser.prefers(scheme);
      await tab.run(() => (document.querySelector("#scroll").scrollTop = 1e6));
      await writeFile(join(screenshots, `chat-${width}-${scheme}.png`), await browser.screenshot());
    }
  }
}

async function promises(browsers, wires) {
  const [one, other] = browsers;
  const tabs = [
    await Tab.open(one, "Ada", wires[0].address, true),
    await Tab.open(one, "Ben", wires[0].address, false),
    await Tab.open(other, "Cleo", wires[1].address, true),
    await Tab.open(other, "Dan", wires[1].address, false),
  ];
  const said = [];
  await everyoneIsHere(tabs);
  await fourTalk(tabs, said);
  await nonsenseIsRefused(tabs, said);
  await whoLeavesThePageIsNotCounted(tabs);
  await allHear(tabs, said);
  await aPulledPlugLosesNothing(tabs, said);
  await everyoneIsHere(tabs);
  for (const browser of browsers) assert.deepEqual(await browser.errors(), [], "errors in the console");

  await cutConnectionsLoseNothing(tabs, wires, said, randomFrom(SEED));
  const all = await whatIsSaidInTheDarkIsHeardLater(tabs, wires, said);
  await everyoneIsHere(tabs);
  await whoComesLaterHearsTheLast(other, wires[1].address, all);
  await everyoneIsHere(tabs);
  await screenshotsOf(one, tabs[1]);
  await restartedServerGoesOn(tabs, wires);
}

async function deadline() {
  await setTimeout(OVERALL, undefined, { ref: false });
  throw new Error(`not done within ${OVERALL} ms`);
}

const wires = [await Wire.to(address), await Wire.to(address)];
const browsers = [];
try {
  browsers.push(await Browser.start(), await Browser.start());
  await Promise.race([promises(browsers, wires), deadline()]);
} catch (error) {
  console.error(`SEED=${SEED}`);
  throw error;
} finally {
  for (const browser of browsers) await browser.close();
  for (const wire of wires) wire.close();
}
