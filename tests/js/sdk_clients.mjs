// Reads streams with an npm package that knows nothing of tower-push, and prints what the package yields: one line of JSON for each item.
//
//     node sdk_clients.mjs CLIENT URL…
//
// CLIENT is a key of `clients`. An error of the client is printed as `{"error": MESSAGE}`. If there are several URLs, `{"end": true}` is
// printed after the items of each.
const [name, ...urls] = process.argv.slice(2)
let [url] = urls
const print = (item) => console.log(JSON.stringify(item))
const prompt = [{ role: 'user', content: 'hi' }]

const clients = {
  async 'ai-sdk'() {
    const { streamText } = await import('ai')
    const { createOpenAICompatible } = await import('@ai-sdk/openai-compatible')
    const provider = createOpenAICompatible({ name: 'test', baseURL: url, apiKey: 'none' })
    const result = streamText({ model: provider('model'), prompt: 'hi', maxRetries: 0, onError() {} })
    for await (const part of result.fullStream) {
      if (part.type === 'text-delta') print(part.text)
      if (part.type === 'error') throw part.error
    }
  },

  // The hook `useChat` of `@ai-sdk/react` reads its stream with this transport.
  async 'ai-sdk-chat'() {
    const { DefaultChatTransport, readUIMessageStream } = await import('ai')
    const transport = new DefaultChatTransport({ api: url })
    const messages = [{ id: '1', role: 'user', parts: [{ type: 'text', text: 'hi' }] }]
    const stream = await transport.sendMessages({ chatId: '1', messages, trigger: 'submit-message' })
    const reader = stream.getReader()
    for (let next; !(next = await reader.read()).done; ) {
      if (next.value.type === 'text-delta') print(next.value.delta)
    }
  },

  async openai() {
    const { default: OpenAI } = await import('openai')
    const openai = new OpenAI({ apiKey: 'none', baseURL: url, maxRetries: 0 })
    const stream = await openai.chat.completions.create({ model: 'model', messages: prompt, stream: true })
    for await (const chunk of stream) print(chunk.choices ? chunk.choices[0].delta.content : chunk)
  },

  async langchain() {
    const { ChatOpenAI } = await import('@langchain/openai')
    const configuration = { baseURL: url }
    const model = new ChatOpenAI({ model: 'model', apiKey: 'none', maxRetries: 0, configuration })
    for await (const chunk of await model.stream('hi')) if (chunk.content) print(chunk.content)
  },

  // The parser that LangChain's integrations use which have no SDK of their own.
  async 'langchain-parser'() {
    const parser = await import('@langchain/core/utils/event_source_parse')
    const { body } = await fetch(url, { method: 'POST' })
    for await (const data of parser.convertEventStreamToIterableReadableDataStream(body)) print(data)
  },

  async cohere() {
    const { CohereClientV2 } = await import('cohere-ai')
    const cohere = new CohereClientV2({ token: 'none', environment: url, maxRetries: 0 })
    const stream = await cohere.chatStream({ model: 'model', messages: prompt })
    for await (const event of stream) {
      print(event.type === 'content-delta' ? event.delta.message.content.text : event)
    }
  },

  async huggingface() {
    const { chatCompletionStream } = await import('@huggingface/inference')
    const request = { endpointUrl: url, model: 'model', messages: prompt }
    for await (const chunk of chatCompletionStream(request)) {
      print(chunk.choices ? chunk.choices[0].delta.content : chunk)
    }
  },

  async 'google-genai'() {
    const { GoogleGenAI } = await import('@google/genai')
    const genai = new GoogleGenAI({ apiKey: 'none', httpOptions: { baseUrl: url } })
    const stream = await genai.models.generateContentStream({ model: 'model', contents: 'hi' })
    for await (const chunk of stream) print(chunk.text ?? null)
  },

  async 'graphql-sse'() {
    const { createClient } = await import('graphql-sse')
    const client = createClient({ url, retryAttempts: 0 })
    for await (const result of client.iterate({ query: 'subscription { text }' })) print(result.data.text)
  },

  async ollama() {
    const { Ollama } = await import('ollama')
    const stream = await new Ollama({ host: url }).chat({ model: 'model', messages: prompt, stream: true })
    for await (const chunk of stream) print(chunk.message.content)
  },

  async apollo() {
    const { ApolloClient, HttpLink, InMemoryCache, gql } = await import('@apollo/client')
    const client = new ApolloClient({ link: new HttpLink({ uri: url }), cache: new InMemoryCache() })
    const results = client.subscribe({ query: gql('subscription { text }') })
    await new Promise((complete, error) => {
      results.subscribe({
        next: (result) => (result.error ? error(result.error) : print(result.data.text)),
        complete,
        error,
      })
    })
  },

  async meros() {
    const { meros } = await import('meros/browser')
    for await (const part of await meros(await fetch(url, { method: 'POST' }))) {
      print(part.json ? part.body : { text: part.body })
    }
  },

  // Reads with `fetch`, and needs a page's `document` to notice that the page is hidden.
  async 'fetch-event-source'() {
    globalThis.window = globalThis
    globalThis.document = { addEventListener() {}, removeEventListener() {}, hidden: false }
    const { fetchEventSource } = await import('@microsoft/fetch-event-source')
    await fetchEventSource(url, {
      method: 'POST',
      openWhenHidden: true,
      onmessage: ({ event, data, id }) => print({ event, data, id }),
      onclose: () => urls.length > 1 || print({ closed: true }),
      onerror: (error) => {
        throw error
      },
    })
  },

  async 'undici-eventsource'() {
    const { EventSource } = await import('undici')
    await eventSource(new EventSource(url))
  },

  async 'event-source-polyfill'() {
    const { EventSourcePolyfill } = (await import('event-source-polyfill')).default
    await eventSource(new EventSourcePolyfill(url))
  },
}

/** Prints the events of an event source until it has reported its third error or has closed. */
function eventSource(source) {
  return new Promise((resolve) => {
    let errors = 0
    // undici does not keep the process alive while it waits to reconnect.
    setInterval(() => {}, 1000)
    for (const type of ['message', 'end', 'finished']) {
      source.addEventListener(type, ({ data }) => print({ type, data }))
    }
    source.addEventListener('error', () => {
      print({ closed: source.readyState === 2 })
      if (source.readyState !== 2 && ++errors < 3) return
      source.close()
      resolve()
    })
  })
}

for (url of urls) {
  try {
    await clients[name]()
  } catch (error) {
    print({ error: String(error.message ?? error) })
  }
  if (urls.length > 1) print({ end: true })
}
process.exit(0)
