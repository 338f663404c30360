// A WebSocket server on the npm package `ws`, with compression. Prints its URL, and runs until standard input ends.
//
// To each client it sends `{"n":1}`, a long text and the bytes 0 and 255, with a ping before each message. Then it sends each message of the
// client back. It closes with the code of the URL's query when the client has sent `close`.
import { once } from 'node:events'
import { WebSocketServer } from 'ws'

const server = new WebSocketServer({
  port: 0,
  host: '127.0.0.1',
  perMessageDeflate: { threshold: 0, serverNoContextTakeover: true },
})
await once(server, 'listening')
console.log(`ws://127.0.0.1:${server.address().port}/`)

server.on('connection', async (socket, request) => {
  const code = Number(new URL(request.url, 'ws://host').search.slice(1))
  const messages = []
  socket.on('message', (data, isBinary) => messages.push([data, isBinary]))
  for (const message of ['{"n":1}', 'é'.repeat(50_000), Buffer.from([0, 255])]) {
    socket.ping(String(message.length))
    const [payload] = await once(socket, 'pong')
    if (String(payload) !== String(message.length)) socket.terminate()
    socket.send(message)
  }
  for (;;) {
    if (!messages.length) await once(socket, 'message')
    const [data, isBinary] = messages.shift()
    if (!isBinary && String(data) === 'close') break
    socket.send(data, { binary: isBinary })
  }
  socket.close(code, 'because')
})

process.stdin.resume()
process.stdin.on('end', () => process.exit())
