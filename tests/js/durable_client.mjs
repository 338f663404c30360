// Reads a stream of JSON messages with the npm package `@durable-streams/client`, and prints lines of JSON: each message, and then
// `{"offset": OFFSET, "isClosed": BOOLEAN}`.
//
//     node durable_client.mjs URL OFFSET LIVE
//
// LIVE is `long-poll` or `sse`, which read until the stream is closed, or `false`, which reads the messages that exist.
import { stream } from '@durable-streams/client'

const [url, offset, live] = process.argv.slice(2)
const print = (record) => console.log(JSON.stringify(record))

const response = await stream({ url, offset, live: live === 'false' ? false : live })
for await (const message of response.jsonStream()) print(message)
print({ offset: response.offset, isClosed: response.streamClosed })
process.exit(0)
