// A worker of a browser: a dedicated one, a shared one or a service worker. Answers a message with `passed` or what has failed.

import { connect } from "/dist/index.js";
import { connect as connectShared } from "/dist/shared.js";
import { checkCore, checkShared } from "/client/core.mjs";

async function check() {
  try {
    await checkCore(connect, location.origin);
    await checkShared(connectShared, location.origin);
    return "passed";
  } catch (error) {
    return String(error);
  }
}

/** The page and the service worker run one check each. The browser may stop a service worker that has no event to wait for. */
globalThis.onmessage = (event) => {
  const answered = check().then((result) => (event.source ?? globalThis).postMessage(result));
  event.waitUntil?.(answered);
};
globalThis.onconnect = ({ ports: [port] }) => {
  port.onmessage = async () => port.postMessage(await check());
};
