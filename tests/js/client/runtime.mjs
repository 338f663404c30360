// Checks the client in the runtime that runs this file, such as Deno or Bun, and in a worker of it.
//
//   SERVER=http://127.0.0.1:3000 node|deno run|bun run runtime.mjs
//
// SERVER is the address of the server of tests/js_client.rs.

import process from "node:process";
import { Worker } from "node:worker_threads";
import { connect } from "../../../clients/js/dist/index.js";
import { connect as connectShared } from "../../../clients/js/dist/shared.js";
import { checkCore, checkShared } from "./core.mjs";
import { runtimeOptions } from "./runtime_options.mjs";

const { SERVER } = process.env;

/** Checks the client in a worker of the web's kind, which Node.js does not have, or else of that of Node.js. */
function checkInWorker() {
  const url = new URL("./runtime_worker.mjs", import.meta.url);
  return new Promise((resolve, reject) => {
    const onMessage = (result) => (result === "passed" ? resolve() : reject(new Error(`in a worker: ${result}`)));
    if (globalThis.Worker) {
      const worker = new globalThis.Worker(url, { type: "module" });
      worker.onmessage = ({ data }) => onMessage(data);
      worker.onerror = ({ message }) => reject(new Error(`in a worker: ${message}`));
      worker.postMessage(SERVER);
    } else {
      const worker = new Worker(url);
      worker.on("message", onMessage).on("error", reject);
      worker.postMessage(SERVER);
    }
  });
}

try {
  await checkCore(connect, SERVER, await runtimeOptions());
  await checkShared(connectShared, SERVER);
  await checkInWorker();
  console.log("passed");
  process.exit(0);
} catch (error) {
  console.log(error.stack ?? error);
  process.exit(1);
}
