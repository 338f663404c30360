// Reads a stream, and prints each event's data on a line as soon as it has arrived. The process exits when the stream ends.
//
//   node tests/js/gzip.mjs node URL          fetch of Node.js
//   node tests/js/gzip.mjs eventsource URL   EventSource in Chromium
//   node tests/js/gzip.mjs fetch URL         fetch in Chromium

import { Browser } from "./browser.mjs";

const [, , client, url] = process.argv;

/** Reads the data lines of an event stream with `fetch`, and calls `print` for each. Resolves at the clean end of the body. */
async function readWithFetch(address, print) {
  const { body } = await fetch(address);
  let text = "";
  for await (const piece of body.pipeThrough(new TextDecoderStream())) {
    const lines = (text + piece).split("\n");
    text = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) print(line.slice(6));
  }
}

/** Runs in the page: collects events in `window.events`, and `null` for the end. */
function readInPage(kind, address, source) {
  window.events = [];
  const print = (event) => window.events.push(event);
  if (kind === "fetch") {
    // The function arrives as text.
    const read = new Function(`return ${source}`)();
    read(address, print).then(() => print(null), (error) => print(`${error}`));
    return;
  }
  const events = new EventSource(address);
  events.onmessage = ({ data }) => print(data);
  events.addEventListener("finished", ({ data }) => {
    print(data);
    events.close();
    print(null);
  });
  events.onerror = () => print("error");
}

/** Runs in the page: waits for an event that is not yet taken, and takes it. */
function takeEvent(done) {
  if (window.events.length > 0) return done(window.events.shift());
  setTimeout(takeEvent, 5, done);
}

async function readWithBrowser() {
  const browser = await Browser.start();
  try {
    await browser.driver.get(new URL("/page", url).href);
    await browser.driver.executeScript(readInPage, client, url, readWithFetch.toString());
    for (;;) {
      const event = await browser.driver.executeAsyncScript(`(${takeEvent}).call(null, arguments[0]); ${takeEvent}`);
      if (event === null) return;
      console.log(event);
    }
  } finally {
    await browser.close();
  }
}

await (client === "node" ? readWithFetch(url, console.log) : readWithBrowser());
