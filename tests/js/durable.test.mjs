import { runConformanceTests } from "@durable-streams/server-conformance-tests";
runConformanceTests({ baseUrl: process.env.DURABLE_STREAMS, longPollTimeoutMs: Number(process.env.LONG_POLL_MS) });
