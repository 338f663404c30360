// Reads an event stream in Chromium with a library that connects again by itself, and prints the events that the page has got within two
// seconds, as one JSON text: `[[TYPE, DATA], …]`.
//
//     node page_event_sources.mjs CLIENT URL
//
// CLIENT is a key of `clients`. The page is at /page of the same server.
import { readFile } from 'node:fs/promises'
import { Browser } from './browser.mjs'

const [, , client, url] = process.argv
/** The time in which htmx connects again at least once: it waits for half a second. */
const READ_MS = 2000

/** Shows the stream in a list with htmx, whose element has these attributes besides. */
const htmx = (attributes) => ({
  scripts: ['htmx.org/dist/htmx.min.js', 'htmx-ext-sse/sse.js'],
  connect: `
    document.body.addEventListener('htmx:sseMessage', ({ detail }) => seen.push([detail.type, detail.data]))
    document.body.addEventListener('htmx:sseClose', () => seen.push(['closed', null]))
    document.body.innerHTML = \`<ul hx-ext="sse" sse-connect="\${url}" ${attributes}><li sse-swap="message"></li></ul>\`
    htmx.process(document.body)`,
})

/** Reads the stream with sse.js, and runs `onFinished` at the event `finished`. */
const sseJs = (onFinished) => ({
  // A script of a page cannot export.
  scripts: ['sse.js/lib/sse.js'],
  connect: `
    const source = new SSE(url, { autoReconnect: true, reconnectDelay: 50 })
    for (const type of ['message', 'finished']) {
      source.addEventListener(type, ({ data }) => seen.push([type, data]))
    }
    source.addEventListener('finished', () => { ${onFinished} })`,
})

const clients = {
  htmx: htmx(''),
  'htmx with sse-close': htmx('sse-close="finished"'),
  'sse.js': sseJs(''),
  'sse.js that is closed': sseJs('source.close()'),
}

const browser = await Browser.start()
try {
  const { driver } = browser
  await driver.get(new URL('/page', url).href)
  const { scripts, connect } = clients[client]
  for (const path of scripts) {
    const source = await readFile(new URL(`node_modules/${path}`, import.meta.url), 'utf8')
    await driver.executeScript('(0, eval)(arguments[0])', source.replace(/^export /gm, ''))
  }
  const events = await driver.executeAsyncScript(
    `const [url, readMs, done] = arguments
    const seen = []
    ${connect}
    setTimeout(() => done(seen), readMs)`,
    url,
    READ_MS,
  )
  console.log(JSON.stringify(events))
} finally {
  await browser.close()
}
