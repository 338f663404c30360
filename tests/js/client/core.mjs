// What the client does in every JavaScript runtime: this file uses nothing but the web's interfaces. tests/js_client.rs knows the routes.

/** The number of events in `/feed` and `/cut-feed`. */
const FEED_LEN = 12;

const TRANSPORTS = ["websocket", "sse", "long-poll"];

function assertEqual(actual, expected, message) {
  const [one, other] = [actual, expected].map((value) => JSON.stringify(value));
  if (one !== other) throw new Error(`${message}: ${one} in place of ${other}`);
}

const FEED_IDS = Array.from({ length: FEED_LEN }, (_, index) => String(index + 1));

/** Checks the `connect` of `tower-push/shared`. Without Web Locks, each connection is its own. */
export async function checkShared(connect, server, options = {}) {
  const all = { shared: `core ${Math.random()}`, since: "0", transports: ["sse"], minDelay: 1, maxDelay: 20, ...options };
  const leaders = new Set();
  const idsOf = async () => {
    const ids = [];
    const push = connect(new URL("/feed", server), all);
    for await (const { id } of push) {
      ids.push(id);
      if (push.transport) leaders.add(push);
    }
    return ids;
  };
  for (const ids of await Promise.all([idsOf(), idsOf(), idsOf()])) assertEqual(ids, FEED_IDS, "a shared connection");
  if (globalThis.navigator?.locks && leaders.size > 1) throw new Error(`${leaders.size} tabs have a connection`);
}

/** Checks a `connect` against the server. `options` are those that the runtime needs. */
export async function checkCore(connect, server, options = {}) {
  const open = (path, rest) => connect(new URL(path, server), { minDelay: 1, maxDelay: 20, openTimeout: 60_000, ...options, ...rest });
  const idsOf = async (push) => {
    const ids = [];
    for await (const { id } of push) ids.push(id);
    return ids;
  };
  for (const transport of [...TRANSPORTS, undefined]) {
    const transports = transport && [transport];
    assertEqual(await idsOf(open("/feed", { transports })), FEED_IDS, `${transport}: the feed`);
    assertEqual(await idsOf(open("/cut-feed", { transports })), FEED_IDS, `${transport}: a feed that is cut after every second event`);
  }
  await checkPayloads(open);
  await checkChangingTransports(open);
  await checkFailures(open);
}

async function checkPayloads(open) {
  const types = [];
  for await (const { type, data } of open("/feed", { transports: ["websocket"] })) types.push(`${type} ${data.constructor.name}`);
  assertEqual(types.slice(0, 4), ["message String", "bytes Uint8Array", "empty String", "json Object"], "payloads");
}

/** One cursor: each connection reads one event over another transport than the last one. */
async function checkChangingTransports(open) {
  const ids = [];
  for (let n = 0; n < FEED_LEN; n++) {
    const push = open("/feed", { transports: [TRANSPORTS[n % 3]], since: ids.at(-1) });
    for await (const { id } of push) {
      ids.push(id);
      break;
    }
    push.close();
  }
  assertEqual(ids, FEED_IDS, "changing transports");
}

async function checkFailures(open) {
  for (const transports of [["sse"], ["long-poll"], undefined]) {
    const push = open("/not-there", { transports });
    let error;
    push.on("error", (last) => (error = last));
    try {
      for await (const _ of push) throw new Error("an event of nowhere");
    } catch (thrown) {
      if (thrown !== error) throw thrown;
    }
    assertEqual([error?.status, error?.final, push.state], [404, true, "closed"], `${transports}: a URL that is not there`);
  }
}
