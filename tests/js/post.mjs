// Sends a POST request with an npm client that does not name `text/event-stream` in its `Accept` header, and prints what the client gets as
// lines of JSON.
//
//     node post.mjs CLIENT URL
//
// CLIENT is `anthropic`, which prints each event of the stream, or `axios`, which prints the media type and the body. A refusal is printed as
// its status and `Retry-After`.
import Anthropic from '@anthropic-ai/sdk'
import axios from 'axios'

const [client, url] = process.argv.slice(2)
const print = (record) => console.log(JSON.stringify(record))

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
}

try {
  await clients[client]()
} catch (error) {
  const headers = error.response?.headers ?? error.headers
  const status = error.response?.status ?? error.status
  if (!status) throw error
  print({ status, retryAfter: Number(headers.get('retry-after')) })
}
