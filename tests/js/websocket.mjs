// A WebSocket client on the npm package `ws`, which prints each event of the connection as one line of JSON.
//
//     node websocket.mjs URL [--protocol NAME]... [--origin ORIGIN] [--window BITS | --no-deflate]
//                            [--take COUNT] [--echo SIZE,...] [--fragment SIZE]
//
//     {"open":{"status","protocol","extensions"}}      {"refused":{"status","headers","body"}}      {"error"}
//     {"text"}    {"binary"}: the bytes as code points    {"echoed"}    {"close":{"code","reason","clean"}}
//
// With --take, the client closes after that many messages. With --echo, it sends a text and a binary message of each size in bytes, all at
// once, and in fragments of the size that --fragment gives. It checks that they come back unchanged, sends a ping, and closes.
import assert from 'node:assert/strict'
import { isDeepStrictEqual, parseArgs } from 'node:util'
import WebSocket from 'ws'

const { positionals: [url], values: options } = parseArgs({
  allowPositionals: true,
  options: {
    protocol: { type: 'string', multiple: true, default: [] },
    origin: { type: 'string' },
    window: { type: 'string' },
    'no-deflate': { type: 'boolean' },
    take: { type: 'string', default: 'Infinity' },
    echo: { type: 'string' },
    fragment: { type: 'string', default: 'Infinity' },
  },
})
const serverMaxWindowBits = options.window && Number(options.window)
const socket = new WebSocket(url, options.protocol, {
  origin: options.origin,
  perMessageDeflate: !options['no-deflate'] && { threshold: 0, serverMaxWindowBits },
})
const print = (record) => console.log(JSON.stringify(record))

let received = 0
let toCome = options.echo?.split(',').flatMap((size, n) => [text(n, Number(size)), binary(n, Number(size))]) ?? []

socket.on('upgrade', ({ statusCode, headers }) => {
  const { 'sec-websocket-protocol': protocol = null, 'sec-websocket-extensions': extensions = null } = headers
  print({ open: { status: statusCode, protocol, extensions } })
})
socket.on('open', () => toCome.forEach(send))
socket.on('message', (data, isBinary) => {
  received += 1
  if (options.echo) return check(isBinary ? data : data.toString())
  if (received > Number(options.take)) return
  print(isBinary ? { binary: data.toString('latin1') } : { text: data.toString() })
  if (received === Number(options.take)) socket.close(1000)
})
socket.on('pong', (data) => {
  assert.equal(data.toString(), 'enough?')
  print({ echoed: received })
  socket.close(1000)
})
socket.on('unexpected-response', async (request, response) => {
  const body = (await response.setEncoding('utf8').toArray()).join('')
  print({ refused: { status: response.statusCode, headers: response.headers, body } })
  request.socket.destroy()
})
socket.on('error', ({ message }) => print({ error: message }))
socket.addEventListener('close', ({ code, reason, wasClean }) => print({ close: { code, reason, clean: wasClean } }))

function send(message) {
  const bytes = Buffer.from(message)
  const size = Math.min(Number(options.fragment), bytes.length || 1)
  for (let start = 0; start === 0 || start < bytes.length; start += size) {
    const fin = start + size >= bytes.length
    socket.send(bytes.subarray(start, start + size), { binary: typeof message !== 'string', fin })
  }
}

function check(message) {
  assert(isDeepStrictEqual(message, toCome.shift()), 'what came back is something else')
  if (toCome.length === 0) socket.ping('enough?')
}

/** So many bytes of text, of characters of all lengths. */
function text(n, size) {
  const bytes = Buffer.from(`${n} aé€😀`.repeat(size / 12 + 1))
  let end = size
  while ((bytes[end] & 0xc0) === 0x80) end -= 1
  return bytes.toString('utf8', 0, end) + '.'.repeat(size - end)
}

function binary(n, size) {
  return Buffer.from(Array.from({ length: size }, (_, at) => (n + at * 7) & 0xff))
}
