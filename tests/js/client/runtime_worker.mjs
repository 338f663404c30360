// A worker of runtime.mjs: gets the address of the server, and answers `passed` or what has failed.

import { connect } from "../../../clients/js/dist/index.js";
import { connect as connectShared } from "../../../clients/js/dist/shared.js";
import { checkCore, checkShared } from "./core.mjs";
import { runtimeOptions } from "./runtime_options.mjs";

const port = globalThis.postMessage ? globalThis : (await import("node:worker_threads")).parentPort;

async function check(server) {
  try {
    await checkCore(connect, server, await runtimeOptions());
    await checkShared(connectShared, server);
    port.postMessage("passed");
  } catch (error) {
    port.postMessage(String(error));
  }
}

if (port === globalThis) globalThis.onmessage = ({ data }) => check(data);
else port.once("message", check);
