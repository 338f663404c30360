// Opens a page that requests streams, in headless Chromium, until standard input ends. The test looks at the server's counts.
//
//   node tests/js/attack.mjs foreign ADDRESS PORT   a page of another site, at ADDRESS, which requests streams of localhost:PORT
//   node tests/js/attack.mjs own HOST PORT          the page of http://HOST:PORT, which requests a stream of its own origin; every HOST resolves
//                                                   to 127.0.0.1

import { Browser } from "./browser.mjs";

const [, , which, where, port] = process.argv;

/** Whatever a page may ask of another site without being asked back. All of it is left open. */
function attack(victim) {
  const add = (name, attributes) => document.body.append(Object.assign(document.createElement(name), attributes));
  const url = (name) => `${victim}/stream?${name}`;
  new EventSource(url("eventsource"), { withCredentials: true });
  fetch(url("fetch"), { mode: "no-cors", credentials: "include" }).catch(() => {});
  add("img", { src: url("img") });
  add("script", { src: url("script") });
  add("iframe", { src: url("iframe") });
  add("iframe", { name: "target" });
  const form = Object.assign(document.createElement("form"), { method: "post", action: url("form"), target: "target" });
  document.body.append(form);
  form.submit();
}

/** What a page asks of its own origin. */
function follow() {
  new EventSource("/stream");
}

// A page with an endless stream never finishes loading, so the script does not wait for it.
const browser = await Browser.start({ flags: ["--host-resolver-rules=MAP * 127.0.0.1"], pageLoadStrategy: "eager" });
const { driver } = browser;
try {
  if (which === "foreign") {
    await driver.get(where);
    await driver.executeScript(attack, `http://localhost:${port}`);
  } else {
    await driver.get(`http://${where}:${port}/`);
    await driver.executeScript(follow);
  }
  for await (const _ of process.stdin);
} finally {
  await browser.close();
}
