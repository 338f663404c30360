// Drives the page of the notifications example in headless Chromium: two tabs of one user, and a tab of another user.
//
//   node tests/js/notifications.mjs http://127.0.0.1:3000 http://127.0.0.1:3001
//
// The second address is that of another server, which knows nothing of the first one: as after a restart.

import assert from "node:assert/strict";
import { Browser } from "./browser.mjs";
import { PageTab } from "./page_tab.mjs";
import { Wire } from "./wire.mjs";

const [, , address, nextAddress] = process.argv;
assert.ok(nextAddress, "usage: notifications.mjs ADDRESS NEXT_ADDRESS");

/** The notifications of a page, the newest first. Unread ones begin with an asterisk. */
const look = () => ({
  state: document.querySelector("#state").textContent,
  title: document.title,
  lines: [...document.querySelectorAll("#list li")].map((line) =>
    (line.classList.contains("unread") ? "*" : "") + line.textContent),
});

const shows = (tab, title, lines) =>
  tab.until(`shows ${lines}`, look, (seen) => JSON.stringify(seen.lines) === JSON.stringify(lines) && seen.title === title);

async function notify(from, user, text) {
  await from.run((user) => (document.querySelector("#to").value = user), user);
  await from.type("#text", `${text}\n`);
  await from.until("has sent", () => document.querySelector("#text").value, (text) => text === "");
}

const browser = await Browser.start();
const wire = await Wire.to(address);
try {
  const ada = [await PageTab.open(browser, `${wire.address}/?user=ada`, true), await PageTab.open(browser, `${wire.address}/?user=ada`)];
  const ben = await PageTab.open(browser, `${wire.address}/?user=ben`);
  const isOpen = ({ state }) => state === "open";
  for (const tab of [...ada, ben]) await tab.until("is open", look, isOpen);

  await notify(ben, "ada", "hello");
  await notify(ben, "ada", "7");
  for (const tab of ada) await shows(tab, "(2) Notifications", ["*7", "*hello"]);
  await shows(ben, "Notifications", []);

  // Read in one tab, read in all, and in those that come later.
  await ada[0].click("#read");
  for (const tab of ada) await shows(tab, "Notifications", ["7", "hello"]);
  const body = "from a program";
  assert.equal((await fetch(`${wire.address}/topics/user/ada`, { method: "POST", headers: { "content-type": "text/plain" }, body })).status, 200);
  for (const tab of ada) await shows(tab, "(1) Notifications", [`*${body}`, "7", "hello"]);
  await ada[1].reload();
  await shows(ada[1], "(1) Notifications", [`*${body}`, "7", "hello"]);
  assert.deepEqual(await browser.errors(), []);

  // While the connections are cut.
  wire.cut();
  for (const tab of ada) await tab.until("notices", look, (seen) => !isOpen(seen));
  await ada[0].click("#read");
  await ada[0].until("tells of the failure", () => document.querySelector("#failed").textContent, (text) => text.startsWith("Not sent"));
  await fetch(`${address}/topics/user/ada`, { method: "POST", headers: { "content-type": "text/plain" }, body: "meanwhile" });
  wire.mend();
  for (const tab of ada) await shows(tab, "(2) Notifications", ["*meanwhile", `*${body}`, "7", "hello"]);

  // The server is restarted, and its memory is lost: the pages say so, and go on.
  wire.moveTo(nextAddress);
  for (const tab of [...ada, ben]) await tab.until("is open again", look, isOpen);
  await notify(ben, "ada", "after the restart");
  const lines = ["*after the restart", "Notifications may be missing here", "*meanwhile", `*${body}`, "7", "hello"];
  for (const tab of ada) await shows(tab, "(3) Notifications", lines);
} finally {
  await browser.close();
  wire.close();
}
