// Drives examples/graphql_ws.rs with the client of the npm package graphql-ws: node graphql_ws.mjs URL. Prints one JSON text per line: the
// scenario, and what the client yields or with which code its connection was closed.
import { createClient } from "graphql-ws";
import WebSocket from "ws";

const url = process.argv[2].replace("http", "ws");
const connectionParams = { token: "let me in" };
const print = (scenario, outcome) => console.log(JSON.stringify({ scenario, ...outcome }));

/** Returns a client, and a promise of the code and reason with which its connection is closed. */
function connect(options) {
  let onClosed;
  const closed = new Promise((resolve) => (onClosed = resolve));
  const client = createClient({
    url,
    webSocketImpl: WebSocket,
    lazy: false,
    onNonLazyError: () => {},
    retryAttempts: 0,
    connectionParams,
    ...options,
    on: { ...options.on, closed: ({ code, reason }) => onClosed({ code, reason }) },
  });
  return { client, closed };
}

async function expectClose(scenario, options) {
  const { client, closed } = connect(options);
  print(scenario, await closed);
  client.dispose();
}

const send = (socket, message) => socket.send(typeof message === "string" ? message : JSON.stringify(message));
const countdown = { query: "subscription ($from: Int) { countdown(from: $from) }", variables: { from: 2 } };

async function collect(client, operation) {
  const results = [];
  try {
    for await (const result of client.iterate(operation)) results.push(result);
  } catch (error) {
    results.push({ error });
  }
  return results;
}

const { client, closed } = connect({ on: {} });
const [hello, numbers, unknown] = await Promise.all([
  collect(client, { query: "{ hello }", variables: null }),
  collect(client, countdown),
  collect(client, { query: "{ nothing }" }),
]);
print("results", { hello, numbers, unknown });
for await (const first of client.iterate({ ...countdown, variables: { from: 100 } })) {
  print("first", first);
  break; // The client sends `complete`.
}
const long = { ...countdown, variables: { from: 100 } };
for (let i = 0; i < 100; i++) client.iterate(long);
print("one too many", { results: await collect(client, long) });
client.dispose();
print("disposed", await closed);

await expectClose("invalid message", { on: { opened: (socket) => send(socket, "not JSON") } });
await expectClose("subscribe before init", {
  on: { opened: (socket) => send(socket, { id: "1", type: "subscribe", payload: countdown }) },
});
await expectClose("wrong token", { connectionParams: { token: "wrong" } });
class WithoutSubprotocol extends WebSocket {
  constructor(address) {
    super(address);
  }
}
await expectClose("no subprotocol", { webSocketImpl: WithoutSubprotocol });
await expectClose("no init", { connectionParams: () => new Promise(() => {}) });
await expectClose("same id twice", {
  on: {
    connected: (socket) => {
      for (let i = 0; i < 2; i++) send(socket, { id: "twice", type: "subscribe", payload: countdown });
    },
  },
});
await expectClose("init twice", { on: { connected: (socket) => send(socket, { type: "connection_init" }) } });
const broken = { id: "1", type: "subscribe", payload: { query: "{ broken }" } };
await expectClose("internal error", { on: { connected: (socket) => send(socket, broken) } });
process.exit();
