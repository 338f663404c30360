"""A WebSocket client on the PyPI package `websocket-client`, which prints each frame as one line of JSON, and answers no frame.

    frames.py URL

This script has a folder of its own, because `websocket.py` beside it would hide the package.

The client sends the package's own `Origin`. The last line is `{"end": true}`, after the end of the connection.
"""

import json
import sys

import websocket


def main(url):
    socket = websocket.create_connection(url, timeout=15, http_no_proxy=["*"])
    try:
        while True:
            # Unlike `recv`, this method answers neither pings nor close frames.
            frame = socket.recv_frame()
            record(opcode=frame.opcode, data=frame.data.decode("latin-1"))
    except websocket.WebSocketConnectionClosedException:
        record(end=True)


def record(**fields):
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
