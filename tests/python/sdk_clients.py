"""Reads streams with a package from PyPI that knows nothing of tower-push, and prints what the package yields: one line of JSON for each item.

    sdk_clients.py CLIENT URL...

CLIENT is a key of `CLIENTS`. An error of the client is printed as `{"error": MESSAGE}`. If there are several URLs, `{"end": true}` is
printed after the items of each.
"""

import json
import os
import sys

PROMPT = [{"role": "user", "content": "hi"}]


def main(client, *urls):
    # The packages may print, too: for example, an advertisement beside an error. What they print goes to the log.
    results, sys.stdout = sys.stdout, sys.stderr
    # Nothing but the loopback interface is used.
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    for url in urls:
        try:
            for item in CLIENTS[client](url):
                print(json.dumps(item), file=results, flush=True)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=results)
        if len(urls) > 1:
            print(json.dumps({"end": True}), file=results, flush=True)


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


def litellm(url):
    """A request to Gemini, whose stream `litellm` parses itself."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    stream = litellm.completion(
        model="gemini/model", api_key="none", api_base=url, messages=PROMPT, stream=True, num_retries=0
    )
    for chunk in stream:
        if chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def cohere(url):
    import cohere

    client = cohere.ClientV2(api_key="none", base_url=url)
    for event in client.chat_stream(model="model", messages=PROMPT):
        yield event.delta.message.content.text if event.type == "content-delta" else event.type


def huggingface(url):
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=url, api_key="none")
    for chunk in client.chat.completions.create(model="model", messages=PROMPT, stream=True):
        yield chunk.choices[0].delta.content if chunk.choices else dict(chunk)


def langchain(url):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="model", api_key="none", base_url=url, max_retries=0)
    for chunk in model.stream("hi"):
        if chunk.content:
            yield chunk.content


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


def httpx2_events(url):
    import httpx2

    with httpx2.Client(trust_env=False) as client, client.sse(url, method="POST") as source:
        for event in source:
            yield {"event": event.event, "data": event.data, "id": event.id}


def aiosseclient_events(url):
    import asyncio

    from aiosseclient import aiosseclient

    async def read():
        return [{"event": event.event, "data": event.data, "id": event.id} async for event in aiosseclient(url)]

    return asyncio.run(read())


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
    "httpx2": httpx2_events,
    "aiosseclient": aiosseclient_events,
    "litellm": litellm,
    "cohere": cohere,
    "huggingface": huggingface,
    "langchain": langchain,
    "aiohttp": aiohttp_lines,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
