// Opens and closes WebSockets one after another in a browser: node websocket_http2.mjs firefox|chromium URL. Prints one JSON text with an object
// for each WebSocket: its first message, the close code and reason, and whether the close was clean.
import { Browser } from "./browser.mjs";
import { Firefox } from "./firefox.mjs";

/** Runs in the page. `count` WebSockets of each kind. */
async function run(count) {
  function use(path, act) {
    return new Promise((resolve) => {
      const socket = new WebSocket(`wss://${location.host}${path}`);
      let message;
      socket.onmessage = ({ data }) => {
        message = data;
        act(socket);
      };
      socket.onclose = ({ code, reason, wasClean }) => resolve({ message, code, reason, wasClean });
    });
  }
  // Random bytes, which compression does not make smaller.
  const tooBig = new Uint8Array(70_000);
  for (let i = 0; i < tooBig.length; i += 10_000) crypto.getRandomValues(tooBig.subarray(i, i + 10_000));
  const results = [];
  for (let i = 0; i < count; i++) {
    results.push(await use("/feed", (socket) => socket.close(4001, "bye")));
    results.push(await use("/ended", () => {}));
    // Firefox calls a close unclean that interrupts its own message.
    const { wasClean, ...refused } = await use("/feed", (socket) => socket.send(tooBig));
    results.push(refused);
  }
  return JSON.stringify(results);
}

const [, , name, url] = process.argv;
const COUNT = 20;
if (name === "firefox") {
  const firefox = await Firefox.start();
  try {
    await firefox.get(url);
    console.log(await firefox.evaluate(`(${run})(${COUNT})`));
  } finally {
    await firefox.close();
  }
} else {
  const browser = await Browser.start({ flags: ["--ignore-certificate-errors"] });
  try {
    await browser.driver.get(url);
    await browser.driver.manage().setTimeouts({ script: 60_000 });
    console.log(await browser.driver.executeAsyncScript(`const done = arguments[0]; (${run})(${COUNT}).then(done, done)`));
  } finally {
    await browser.close();
  }
}
