// Runs the client that docs/websocket.md shows, on the npm package `ws`, and prints every call of `show` on a line.
//
//     node follow.mjs http://127.0.0.1:3000/feed
//
// The process exits when that client stops by itself.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import WebSocket from 'ws'
import { connect } from '../../clients/js/dist/index.js'

const [, , address] = process.argv
const document = await readFile(new URL('../../docs/websocket.md', import.meta.url), 'utf8')
const IMPORT = 'import { connect } from "tower-push";\n'
const programs = [...document.matchAll(/```js\n(.*?)```/gs)].filter(([, program]) => program.startsWith(IMPORT))
assert.equal(programs.length, 1)

// The globals that the client finds in a page.
Object.assign(globalThis, { WebSocket, location: new URL(address) })
const run = new Function('connect', 'show', 'reload', programs[0][1].slice(IMPORT.length))
run(connect, (...shown) => console.log(JSON.stringify({ shown })), () => assert.fail('events were missed'))
