// Runs the client that docs/websocket.md shows, on the npm package `ws`, and prints every envelope on a line.
//
//     node follow.mjs http://127.0.0.1:3000/feed
//
// The process exits when that client stops by itself.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import WebSocket from 'ws'

const [, , address] = process.argv
const document = await readFile(new URL('../../docs/websocket.md', import.meta.url), 'utf8')
const programs = [...document.matchAll(/```js\n(.*?)```/gs)].filter(([, program]) => program.includes('function follow('))
assert.equal(programs.length, 1)

// The globals that the client finds in a page.
Object.assign(globalThis, { WebSocket, location: new URL(address) })
const follow = new Function(`${programs[0][1]}; return follow`)()
follow(address, (envelope) => console.log(JSON.stringify(envelope)))
