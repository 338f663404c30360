// Sends POST requests with an npm client that does not name `text/event-stream` alone in its `Accept` header, and prints what the client gets
// as lines of JSON.
//
//     node post.mjs CLIENT URL
//
// CLIENT is `anthropic`, which prints each event of the stream; `axios`, which prints the media type and the body; or `mcp`, which prints the
// tools of a server of the Model Context Protocol, the method of the notification on its GET stream, and the statuses of the GET requests. A
// refusal is printed as its status and `Retry-After`.
import Anthropic from '@anthropic-ai/sdk'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import axios from 'axios'

const [client, url] = process.argv.slice(2)
const print = (record) => console.log(JSON.stringify(record))

/** The time for which the client of MCP waits before it connects again, and in which it would send a request that it should not send. */
const RECONNECTION_DELAY_MS = 50
const QUIET_MS = 500

const clients = {
  async anthropic() {
    const anthropic = new Anthropic({ apiKey: 'none', baseURL: url, maxRetries: 0 })
    const messages = [{ role: 'user', content: 'hello' }]
    const stream = await anthropic.messages.create({ model: 'any', max_tokens: 9, messages, stream: true })
    for await (const event of stream) print(event)
  },
  async axios() {
    const { data, headers } = await axios.post(url, {})
    print({ type: headers['content-type'].split(';')[0], data })
  },
  async mcp() {
    const statuses = []
    let hasStopped
    const stopped = new Promise((resolve) => (hasStopped = resolve))
    const countingFetch = async (input, init) => {
      const response = await fetch(input, init)
      if (init.method === 'GET') statuses.push(response.status)
      if (response.status === 204) setTimeout(hasStopped, QUIET_MS)
      return response
    }
    const reconnectionOptions = {
      initialReconnectionDelay: RECONNECTION_DELAY_MS,
      maxReconnectionDelay: RECONNECTION_DELAY_MS,
      reconnectionDelayGrowFactor: 1,
      maxRetries: 5,
    }
    const client = new Client({ name: 'test', version: '1' })
    const errors = []
    client.onerror = (error) => errors.push(String(error))
    const notified = new Promise((resolve) => (client.fallbackNotificationHandler = resolve))
    await client.connect(
      new StreamableHTTPClientTransport(new URL(url), { fetch: countingFetch, reconnectionOptions }),
    )
    const { tools } = await client.listTools()
    print({ tools: tools.map(({ name }) => name) })
    print({ notified: (await notified).method })
    await stopped
    print({ statuses, errors })
    await client.close()
  },
}

try {
  await clients[client]()
} catch (error) {
  const headers = error.response?.headers ?? error.headers
  // The error of MCP has the status as its code, and no headers.
  const status = error.response?.status ?? error.status ?? error.code
  if (!status) throw error
  print({ status, retryAfter: headers ? Number(headers.get('retry-after')) : undefined })
}
