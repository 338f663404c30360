// A worker of a browser: a dedicated one, a shared one or a service worker. Answers a message with `passed` or what has failed.

import { connect } from "/dist/index.js";
import { checkCore } from "/client/core.mjs";

const check = () => checkCore(connect, location.origin).then(() => "passed", String);

/** The page and the service worker run one check each. The browser may stop a service worker that has no event to wait for. */
globalThis.onmessage = (event) => {
  const answered = check().then((result) => (event.source ?? globalThis).postMessage(result));
  event.waitUntil?.(answered);
};
globalThis.onconnect = ({ ports: [port] }) => {
  port.onmessage = async () => port.postMessage(await check());
};
