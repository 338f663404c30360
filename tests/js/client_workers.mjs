// The JavaScript client in the workers of Chromium: dedicated, shared and service workers.
//
//   SERVER=http://127.0.0.1:3000 node tests/js/client_workers.mjs
//
// SERVER is the address of the server of tests/js_client.rs.

import assert from "node:assert/strict";
import { Browser } from "./browser.mjs";

const { SERVER } = process.env;
const SCRIPT = "/client/browser_worker.mjs";

/** For each kind of worker, an expression that resolves with the worker's answer. */
const WORKERS = {
  dedicated: `new Promise((resolve, reject) => {
    const worker = new Worker("${SCRIPT}", { type: "module" });
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message }) => reject(message);
    worker.postMessage("check");
  })`,
  shared: `new Promise((resolve, reject) => {
    const worker = new SharedWorker("${SCRIPT}", { type: "module" });
    worker.onerror = ({ message }) => reject(message);
    worker.port.onmessage = ({ data }) => resolve(data);
    worker.port.postMessage("check");
  })`,
  service: `new Promise(async (resolve, reject) => {
    navigator.serviceWorker.onmessage = ({ data }) => resolve(data);
    await navigator.serviceWorker.register("${SCRIPT}", { type: "module" }).catch(reject);
    const { installing, waiting, active } = await navigator.serviceWorker.getRegistration("${SCRIPT}");
    (installing ?? waiting ?? active).postMessage("check");
  })`,
};

const browser = await Browser.start();
try {
  await browser.driver.manage().setTimeouts({ script: 120_000 });
  await browser.driver.get(`${SERVER}/`);
  for (const [kind, answer] of Object.entries(WORKERS)) {
    const result = await browser.driver.executeAsyncScript(`const done = arguments[0]; ${answer}.then(done, (error) => done(String(error)))`);
    assert.equal(result, "passed", kind);
  }
} finally {
  await browser.close();
}
