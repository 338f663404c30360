"""Reads a stream with a package from PyPI that knows nothing of tower-push, and prints what the package yields: one line of JSON for each item.

    sdk_clients.py CLIENT URL

CLIENT is a key of `CLIENTS`. An error of the client is printed as `{"error": MESSAGE}`.
"""

import json
import os
import sys

PROMPT = [{"role": "user", "content": "hi"}]


def main(client, url):
    # Nothing but the loopback interface is used.
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    try:
        for item in CLIENTS[client](url):
            print(json.dumps(item), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))


def openai(url):
    from openai import OpenAI

    client = OpenAI(api_key="none", base_url=url, max_retries=0)
    for chunk in client.chat.completions.create(model="model", messages=PROMPT, stream=True):
        yield chunk.choices[0].delta.content if chunk.choices else chunk.model_extra


def groq(url):
    from groq import Groq

    client = Groq(api_key="none", base_url=url, max_retries=0)
    for chunk in client.chat.completions.create(model="model", messages=PROMPT, stream=True):
        yield chunk.choices[0].delta.content if chunk.choices else chunk.model_extra


def google_genai(url):
    from google import genai

    client = genai.Client(api_key="none", http_options={"base_url": url})
    for chunk in client.models.generate_content_stream(model="model", contents="hi"):
        yield chunk.text


def ollama(url):
    from ollama import Client

    for chunk in Client(host=url).chat(model="model", messages=PROMPT, stream=True):
        yield chunk.message.content


def jsonlines(url):
    import jsonlines
    import requests

    with requests.post(url, stream=True) as response:
        yield from jsonlines.Reader(response.iter_lines())


def requests_lines(url):
    """The lines of an event stream, decoded as `requests` decodes them."""
    import requests

    with requests.post(url, stream=True) as response:
        for line in response.iter_lines(decode_unicode=True):
            yield line


def httpx_sse(url):
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(trust_env=False) as client, connect_sse(client, "POST", url) as source:
        for event in source.iter_sse():
            yield {"event": event.event, "data": event.data}


def aiohttp_lines(url):
    """The lines of a body, as `aiohttp` yields them."""
    import asyncio

    import aiohttp

    async def read():
        async with aiohttp.ClientSession() as session, session.post(url) as response:
            return [len(line) async for line in response.content]

    return asyncio.run(read())


CLIENTS = {
    "openai": openai,
    "groq": groq,
    "google-genai": google_genai,
    "ollama": ollama,
    "jsonlines": jsonlines,
    "requests": requests_lines,
    "httpx-sse": httpx_sse,
    "aiohttp": aiohttp_lines,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
