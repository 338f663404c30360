"""Reads a stream with a client from PyPI, and prints each item as one line of JSON.

    read.py CLIENT VERSION URL [ACKNOWLEDGE]

CLIENT is a key of `CLIENTS`. VERSION is the version of HTTP, `1` or `2`. ACKNOWLEDGE is a URL: the script requests it with each item's id
appended, before it reads the next item. A stream that is cut off ends with `{"cut": true}`.
"""

import email
import json
import sys

import httpx
from httpx_sse import EventSource
from jsonseq.decode import JSONSeqDecoder
from python_multipart.multipart import MultipartParser, parse_options_header
from sseclient import SSEClient

#: The longest time without a byte, in seconds.
TIMEOUT = 15


def main(client, version, url, acknowledge=None):
    accept, read = CLIENTS[client]
    is_http2 = version == "2"
    with (
        httpx.Client(http1=not is_http2, http2=is_http2, timeout=TIMEOUT, trust_env=False) as http,
        http.stream("GET", url, headers={"accept": accept}) as response,
    ):
        response.raise_for_status()
        try:
            for item in read(response):
                print(json.dumps(item), flush=True)
                if acknowledge and item.get("id"):
                    http.get(acknowledge + item["id"]).raise_for_status()
        except httpx.RemoteProtocolError:
            print(json.dumps({"cut": True}))


def message(event):
    return {"type": event.event, "data": event.data, "id": event.id or ""}


def httpx_sse(response):
    return map(message, EventSource(response).iter_sse())


def sseclient_py(response):
    return map(message, SSEClient(response.iter_bytes()).events())


def httpx_lines(response):
    return (json.loads(line) for line in response.iter_lines() if line)


def ndjson(response):
    return (json.loads(line) for line in lines(response) if line != "\n")


def jsonseq(response):
    return JSONSeqDecoder().decode(lines(response))


def lines(response):
    """Lines that end in U+000A only. To `iter_lines`, U+001E, U+0085, U+2028 and others end one, too."""
    rest = ""
    for text in response.iter_text():
        *whole, rest = (rest + text).split("\n")
        yield from (line + "\n" for line in whole)
    if rest:
        yield rest


def python_multipart(response):
    """Parts as their delimiters arrive."""
    _, options = parse_options_header(response.headers["content-type"])
    name, value, headers, body = bytearray(), bytearray(), {}, bytearray()
    parts = []

    def begin():
        headers.clear()
        body.clear()

    def header_end():
        headers[name.decode()] = value.decode()
        name.clear()
        value.clear()

    parser = MultipartParser(
        options[b"boundary"],
        {
            "on_part_begin": begin,
            "on_header_field": lambda data, start, end: name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: value.extend(data[start:end]),
            "on_header_end": header_end,
            "on_part_data": lambda data, start, end: body.extend(data[start:end]),
            "on_part_end": lambda: parts.append(part(headers, bytes(body))),
        },
    )
    for chunk in response.iter_bytes():
        parser.write(chunk)
        yield from parts
        parts.clear()
    parser.finalize()


def email_parser(response):
    """Parts of a body that has ended."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n"
    whole = email.message_from_bytes(head.encode() + response.read())
    assert not whole.defects, whole.defects
    return (part(dict(each.items()), each.get_payload(decode=True)) for each in whole.get_payload())


def part(headers, body):
    headers = {name.lower(): value for name, value in headers.items()}
    return {"id": headers.get("event-id"), "headers": headers, "body": body.decode("latin-1")}


CLIENTS = {
    "httpx-sse": ("text/event-stream", httpx_sse),
    "sseclient-py": ("text/event-stream", sseclient_py),
    "httpx-lines": ("application/x-ndjson", httpx_lines),
    "ndjson": ("application/x-ndjson", ndjson),
    "jsonseq": ("application/json-seq", jsonseq),
    "python-multipart": ("multipart/mixed", python_multipart),
    "email": ("multipart/mixed", email_parser),
}

if __name__ == "__main__":
    main(*sys.argv[1:])
