// Reads an event stream with the npm package `eventsource`, and prints each event as one line of JSON.
//
//     node eventsource.mjs URL ACKNOWLEDGE TYPE...
//
// ACKNOWLEDGE is a URL: the script requests it with each event's id appended. The process exits when the event source has stopped for good.
import { EventSource } from 'eventsource'

const [url, acknowledge, ...types] = process.argv.slice(2)
const source = new EventSource(url)
const print = (record) => console.log(JSON.stringify(record))

for (const type of types) {
  source.addEventListener(type, ({ data, lastEventId }) => {
    print({ type, data, id: lastEventId })
    if (acknowledge) fetch(acknowledge + lastEventId)
  })
}
source.addEventListener('error', ({ code }) => print({ error: code ?? null, state: source.readyState }))
