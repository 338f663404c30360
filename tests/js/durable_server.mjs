// The server of the Durable Streams project, with short long polls. Prints its URL, and runs until standard input ends.
import { DurableStreamTestServer } from "@durable-streams/server";

const server = new DurableStreamTestServer({ port: 0, longPollTimeout: 1500 });
console.log(await server.start());
process.stdin.resume();
process.stdin.on("end", () => process.exit());
