// Servers that say what a test wants.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { after } from "node:test";
import { WebSocketServer } from "ws";
import { open, readAll } from "./support.mjs";

/** What closes the servers after the tests. */
const closers = [];
after(() => {
  for (const close of closers) close();
});

/** Lets a server listen on a free port until the tests of the file have ended. Returns its address. */
export async function listen(server) {
  const sockets = new Set();
  server.on("connection", (socket) => sockets.add(socket));
  closers.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return `http://127.0.0.1:${server.address().port}/`;
}

/** Serves the answers one after another, and the last one again and again. Each is a function of request and response. */
export async function serve(...answers) {
  const requests = [];
  const server = createServer((request, response) => {
    requests.push(request);
    (answers.length > 1 ? answers.shift() : answers[0])(request, response);
  });
  // The client may cut the connection first.
  server.on("upgrade", (_, socket) => socket.on("error", () => {}).end("HTTP/1.1 400 Bad Request\r\n\r\n"));
  return { url: await listen(server), requests };
}

export const respond = (status, headers = {}, body = "") => (_, response) => response.writeHead(status, headers).end(body);
export const sse = (body, headers) => respond(200, { "content-type": "text/event-stream", ...headers }, body);
export const finished = respond(204);

/** Reads to the end. Returns the items, and the errors. */
export async function read(url, options) {
  const push = open(url, { transports: ["sse"], ...options });
  const errors = [];
  push.on("error", (error) => errors.push(error));
  const items = await readAll(push).catch((error) => assert.equal(error, errors.at(-1)));
  return { items, errors, push };
}

/** Serves WebSockets. `onConnection` gets the socket, the number of the connection and the request. */
export async function serveSockets(onConnection, options = {}) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1", ...options });
  const sockets = [];
  closers.push(() => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  });
  server.on("connection", (socket, request) => onConnection(socket, sockets.push(socket), request));
  await once(server, "listening");
  return `http://127.0.0.1:${server.address().port}/`;
}

/** Returns the response to the bytes of a WebSocket handshake, for servers that break the protocol after it. */
export function handshakeResponse(request) {
  const [, key] = /sec-websocket-key: (.*)\r\n/i.exec(request);
  const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
  return (
    `HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ${accept}\r\n` +
    "sec-websocket-protocol: json.tower-push\r\n\r\n"
  );
}
