// Connects a client library that reconnects by itself to WebSockets that end with one close code each, and prints after which codes the library
// has connected again, as one JSON text.
//
//     node reconnecting_clients.mjs CLIENT URL CODE…
//
// CLIENT is a key of `inNode` or `inPage`. A code 1006 stands for a connection without a close frame.
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import WebSocket from 'ws'
import { Browser } from './browser.mjs'

const [, , client, url, ...codes] = process.argv
const DELAY_MS = 200
/** How long a library may take to begin its next connection. The delay of each library is set to `DELAY_MS` if it can be set. */
const QUIET_MS = 2000

const urlOf = (code) => `${url.replace('http', 'ws')}?code=${code}`
const require = createRequire(import.meta.url)

/** Counts the connections of each code, and those that were closed. Its source is also run in pages. */
function countConnections(WebSocket) {
  const counts = {}
  const closed = new Set()
  const counting = class extends WebSocket {
    constructor(url, protocols) {
      super(url, protocols)
      const code = new URL(url).searchParams.get('code')
      counts[code] = (counts[code] ?? 0) + 1
      this.addEventListener('close', () => {
        if (!closed.has(code)) counting.lastClosedAt = Date.now()
        closed.add(code)
      })
    }
  }
  return Object.assign(counting, { counts, closed })
}

/** Waits until each client's first connection was closed, and then for the time in which a client reconnects. Its source is also run in pages. */
async function untilReconnected(counting, codeCount, quietMs) {
  const isQuiet = () => counting.closed.size === codeCount && Date.now() - counting.lastClosedAt > quietMs
  while (!isQuiet()) await new Promise((resolve) => setTimeout(resolve, 50))
}

/** Connects with the hook of `react-use-websocket`, in a component without a page. */
async function connectWithReactHook(url, options) {
  // React warns of updates that its functions for tests have not caused.
  console.error = () => {}
  // The timers of the hook are those of a window.
  globalThis.window = globalThis
  const { createElement } = await import('react')
  const { create } = await import('react-test-renderer')
  const { default: useWebSocket } = require('react-use-websocket')
  const Component = () => {
    useWebSocket(url, { reconnectInterval: DELAY_MS, ...options })
    return null
  }
  create(createElement(Component))
}

/** Each function connects to a URL, with a constructor of WebSockets. */
const inNode = {
  'react-use-websocket': (url) => connectWithReactHook(url, {}),

  'react-use-websocket with shouldReconnect': (url) => connectWithReactHook(url, { shouldReconnect: () => true }),

  async 'reconnecting-websocket'(url, WebSocket) {
    const { default: ReconnectingWebSocket } = await import('reconnecting-websocket')
    const options = { WebSocket, minReconnectionDelay: DELAY_MS, maxReconnectionDelay: DELAY_MS }
    new ReconnectingWebSocket(url, [], options)
  },

  async partysocket(url, WebSocket) {
    const { WebSocket: ReconnectingWebSocket } = await import('partysocket')
    const options = { WebSocket, minReconnectionDelay: DELAY_MS, maxReconnectionDelay: DELAY_MS }
    new ReconnectingWebSocket(url, [], options)
  },

  async 'websocket-ts'(url) {
    const { ConstantBackoff, WebsocketBuilder } = require('websocket-ts')
    new WebsocketBuilder(url).withBackoff(new ConstantBackoff(DELAY_MS)).build()
  },

  async sockette(url) {
    const { default: sockette } = await import('sockette')
    sockette(url, { timeout: DELAY_MS })
  },

  async rxjs(url, WebSocketCtor) {
    const { retry } = await import('rxjs')
    const { webSocket } = await import('rxjs/webSocket')
    const messages = webSocket({ url, WebSocketCtor }).pipe(retry({ delay: DELAY_MS }))
    messages.subscribe({ error() {} })
  },

  async 'graphql-ws'(url, webSocketImpl) {
    const { createClient } = await import('graphql-ws')
    const retryWait = () => new Promise((resolve) => setTimeout(resolve, DELAY_MS))
    const client = createClient({ url, webSocketImpl, retryWait })
    client.subscribe({ query: 'subscription { text }' }, { next() {}, error() {}, complete() {} })
  },
}

/** Each value has the scripts of a page, and a function that connects the page to a URL. */
const inPage = {
  'htmx-ext-ws': {
    scripts: ['htmx.org/dist/htmx.min.js', 'htmx-ext-ws/ws.js'],
    connect: (url) => {
      htmx.config.wsReconnectDelay = () => 200
      const element = document.createElement('div')
      element.setAttribute('hx-ext', 'ws')
      element.setAttribute('ws-connect', url)
      document.body.append(element)
      htmx.process(element)
    },
  },

  turbo: {
    scripts: ['@hotwired/turbo/dist/turbo.es2017-umd.js'],
    connect: (url) => {
      const element = document.createElement('turbo-stream-source')
      element.setAttribute('src', url)
      document.body.append(element)
    },
  },

  'robust-websocket': {
    scripts: ['robust-websocket/robust-websocket.js'],
    connect: (url) => new RobustWebSocket(url),
  },
}

const reconnected = (counts) => codes.filter((code) => counts[code] > 1).map(Number)

async function runInNode(connect) {
  const counting = countConnections(WebSocket)
  globalThis.WebSocket = counting
  for (const code of codes) await connect(urlOf(code), counting)
  await untilReconnected(counting, codes.length, QUIET_MS)
  return reconnected(counting.counts)
}

async function runInPage({ scripts, connect }) {
  const browser = await Browser.start()
  try {
    const { driver } = browser
    await driver.get(`${url}page`)
    await driver.manage().setTimeouts({ script: 60_000 })
    await driver.executeScript(`WebSocket = (${countConnections})(WebSocket)`)
    for (const path of scripts) {
      const source = await readFile(new URL(`node_modules/${path}`, import.meta.url), 'utf8')
      await driver.executeScript('(0, eval)(arguments[0])', source)
    }
    const counts = await driver.executeAsyncScript(
      `const [urls, quietMs, done] = arguments
      for (const url of urls) (${connect})(url)
      ;(${untilReconnected})(WebSocket, urls.length, quietMs).then(() => done(WebSocket.counts))`,
      codes.map(urlOf),
      QUIET_MS,
    )
    return reconnected(counts)
  } finally {
    await browser.close()
  }
}

const codesAfterWhichItReconnects = client in inNode ? await runInNode(inNode[client]) : await runInPage(inPage[client])
console.log(JSON.stringify(codesAfterWhichItReconnects))
process.exit(0)
