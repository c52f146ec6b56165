"""Many clients of one server, those that leave or wait, keys, and `curl`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import threading

import openai
import pytest
from conftest import EMBEDDED, LONG_PROMPT, QUESTION, shared_ensemble
from holding import busy, held, idle, soon
from openai import AsyncOpenAI, OpenAI
from server_fixture import served

from gac_core.server.catalog import Catalog
from gac_core.server.settings import ServerSettings

KEY = "sk-right"
GREEDY = {"model": "gac", "temperature": 0}
# An answer that does not end by itself for a long time.
ENDLESS = {"prompt": LONG_PROMPT, "max_tokens": 500, "extra_body": {"grammar": {"regex": "[a-z ]{2000}"}}, **GREEDY}


@pytest.fixture(scope="module")
def small():
    """One request runs and one waits."""
    with shared_ensemble(EMBEDDED, max_batch_size=1, max_queue=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def url(ensemble, small):
    settings = ServerSettings(api_keys=(hashlib.sha256(KEY.encode()).hexdigest(),))
    with served(Catalog({"gac": ensemble, "small": small}), settings) as base:
        yield f"{base}/v1"


@pytest.fixture
async def client(url):
    async with AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def patient(url):
    with OpenAI(base_url=url, api_key=KEY, max_retries=8, timeout=60) as made:
        yield made


async def text_of(client, prompt, stream, **asked):
    answer = await client.completions.create(prompt=prompt, stream=stream, **{**GREEDY, **asked})
    if not stream:
        return answer.choices[0].text
    return "".join([chunk.choices[0].text async for chunk in answer if chunk.choices])


async def test_32_at_once_write_what_each_writes_alone(client, ensemble):
    prompts = [f"{LONG_PROMPT[: 9 * (place % 5)]}Where is bridge {place}?" for place in range(32)]
    want = [output.text for output in ensemble.generate_batch(prompts, max_tokens=8)]
    got = await asyncio.gather(
        *(text_of(client, prompt, place % 2 == 0, max_tokens=8) for place, prompt in enumerate(prompts))
    )
    assert got == want


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_frees_the_engine(client, ensemble, stream):
    async def read():
        answer = await client.completions.create(stream=stream, **ENDLESS)
        if stream:
            async for _ in answer:
                pass

    task = asyncio.create_task(read())
    assert await asyncio.to_thread(busy, ensemble)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(idle, ensemble)


async def test_a_closed_stream_frees_the_engine(client, ensemble):
    async with await client.completions.create(stream=True, **ENDLESS) as stream:
        async for _ in stream:
            break
    assert await asyncio.to_thread(idle, ensemble)


async def test_the_clients_own_timeout_frees_the_engine(client, ensemble):
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.3).completions.create(**ENDLESS)
    assert await asyncio.to_thread(idle, ensemble)


async def test_a_timeout_of_the_request(client, ensemble):
    asked = {**ENDLESS, "extra_body": {**ENDLESS["extra_body"], "timeout": 0.3}}
    with pytest.raises(openai.InternalServerError) as error:
        await client.completions.create(**asked)
    assert error.value.status_code == 504
    assert error.value.request_id == error.value.body["request_id"]
    with pytest.raises(openai.APIError, match="timeout") as broken:
        async for _ in await client.completions.create(stream=True, **asked):
            pass
    assert broken.value.body["request_id"]
    assert await asyncio.to_thread(idle, ensemble)


async def test_comments_keep_a_silent_stream_open(ensemble):
    with served(Catalog({"gac": ensemble}), ServerSettings(ping_seconds=0.05)) as base:
        async with AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=10) as client:
            with held(ensemble):
                call = client.completions.with_streaming_response.create(prompt="Where", stream=True, **GREEDY)
                async with call as response:
                    lines = response.iter_lines()
                    assert [(await anext(lines))[:1] for _ in range(4)] == [":", "", ":", ""]
                task = asyncio.create_task(text_of(client, "Where", True, max_tokens=4))
                await asyncio.sleep(0.2)
            assert await task == ensemble.generate("Where", max_tokens=4).text


# ---- a full queue


def ask_small(client, max_tokens=1):
    return client.completions.create(model="small", prompt="Where", temperature=0, max_tokens=max_tokens)


def test_a_full_queue_refuses_and_the_client_comes_back(patient, small):
    impatient = patient.with_options(max_retries=0, timeout=10)
    texts: list[str] = []
    with held(small) as waiting:
        threads = [threading.Thread(target=lambda: texts.append(ask_small(patient).choices[0].text)) for _ in "ab"]
        threads[0].start()
        assert waiting.wait(10)
        threads[1].start()
        box = small._session.worker._mailbox
        assert soon(lambda: len(box.pending) + len(box.held) == 2)
        with pytest.raises(openai.RateLimitError) as error:
            ask_small(impatient)
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert error.value.code == "queue_full"
        # Refused once, then accepted after the time that the server named.
        threads.append(threading.Thread(target=lambda: texts.append(ask_small(patient).choices[0].text)))
        threads[2].start()
    for thread in threads:
        thread.join(30)
    assert texts == [small.generate("Where", max_tokens=1).text] * 3


# ---- keys


@pytest.mark.parametrize("key", ["sk-wrong", KEY + " x", KEY[:-1], "", "é"])
async def test_wrong_keys(url, key):
    headers = {"Authorization": f"Bearer {key}".encode()} if key else {"Authorization": openai.omit}
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as error:
            await client.models.list(extra_headers=headers)
    assert error.value.code == "invalid_api_key"
    assert error.value.request_id


# ---- curl


def curl(*arguments):
    done = subprocess.run(["curl", "-sS", "--max-time", "30", *arguments], capture_output=True, check=True, timeout=40)
    return done.stdout.decode()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(url, ensemble):
    body = json.dumps({"messages": QUESTION, "max_tokens": 8, **GREEDY})
    call = [f"{url}/chat/completions", "-H", "Content-Type: application/json", "-d"]
    key = ["-H", f"Authorization: Bearer {KEY}"]
    want = ensemble.generate(QUESTION, max_tokens=8).text
    assert json.loads(curl(*call, body, *key))["choices"][0]["message"]["content"] == want
    streamed = curl("-N", *call, json.dumps({**json.loads(body), "stream": True}), *key)
    lines = [line for line in streamed.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
    assert "".join(pieces) == want
    wrong = curl("-i", *call, body, "-H", "Authorization: Bearer sk-wrong")
    head, _, told = wrong.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 401")
    assert json.loads(told)["error"]["request_id"] in head
