"""Publishes messages with nats-py: nats_publish.py URL SUBJECT PAYLOAD [HEADER=VALUE...]"""

import asyncio
import sys

import nats


async def main():
    url, subject, payload, *headers = sys.argv[1:]
    client = await nats.connect(url)
    headers = dict(header.split("=", 1) for header in headers)
    acknowledgement = await client.jetstream().publish(subject, payload.encode(), headers=headers or None)
    print(acknowledgement.seq)
    await client.close()


asyncio.run(main())
