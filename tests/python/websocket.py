"""A WebSocket client on the PyPI package `websockets`, which prints each event of the connection as one line of JSON.

    websocket.py URL [--protocol NAME]... [--origin ORIGIN] [--window BITS | --no-deflate]
                     [--take COUNT] [--echo SIZE,...] [--fragment SIZE]

Options and records are those of `tests/js/websocket.mjs`.
"""

import argparse
import asyncio
import json

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory


async def main(options):
    try:
        socket = await connect(
            options.url,
            origin=options.origin,
            subprotocols=options.protocol,
            compression=None,
            extensions=extensions(options),
            max_size=None,
            ping_interval=None,
            proxy=None,
        )
    except InvalidStatus as refused:
        return print_refusal(refused.response)
    headers = socket.response.headers
    extension = headers.get("sec-websocket-extensions")
    status = socket.response.status_code
    record(open={"status": status, "protocol": socket.subprotocol, "extensions": extension})
    try:
        if options.echo:
            await echo(socket, options)
        else:
            await take(socket, options.take)
        await socket.close()
    except ConnectionClosed:
        await socket.wait_closed()
    print_close(socket.protocol)


def extensions(options):
    if options.no_deflate:
        return None
    return [ClientPerMessageDeflateFactory(server_max_window_bits=options.window)]


async def take(socket, count):
    while count != 0:
        message = await socket.recv()
        if isinstance(message, str):
            record(text=message)
        else:
            record(binary=message.decode("latin-1"))
        count -= 1


async def echo(socket, options):
    messages = []
    for n, size in enumerate(map(int, options.echo.split(","))):
        messages += [text(n, size), bytes((n + at * 7) & 0xFF for at in range(size))]

    async def send():
        for message in messages:
            await socket.send(fragments(message, options.fragment))

    sending = asyncio.create_task(send())
    for message in messages:
        assert await socket.recv() == message
    await sending
    await (await socket.ping("enough?"))
    record(echoed=len(messages))


def text(n, size):
    """So many bytes of text, of characters of all lengths."""
    cut = (f"{n} aé€😀" * (size // 12 + 1)).encode()[:size].decode(errors="ignore")
    return cut + "." * (size - len(cut.encode()))


def fragments(message, size):
    """In characters, where it is text: a fragment is a `str` here."""
    if size is None or not message:
        return message
    return (message[at : at + size] for at in range(0, len(message), size))


def print_refusal(response):
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    record(refused={"status": response.status_code, "headers": headers, "body": response.body.decode()})


def print_close(protocol):
    received, sent = protocol.close_rcvd, protocol.close_sent
    code, reason = (received.code, received.reason) if received else (1006, "")
    record(close={"code": code, "reason": reason, "clean": bool(received and sent)})


def record(**entries):
    print(json.dumps(entries), flush=True)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--protocol", action="append")
    parser.add_argument("--origin")
    parser.add_argument("--window", type=int)
    parser.add_argument("--no-deflate", action="store_true")
    parser.add_argument("--take", type=int, default=-1)
    parser.add_argument("--echo")
    parser.add_argument("--fragment", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
