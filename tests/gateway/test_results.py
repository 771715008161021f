"""Results of tools through the gateway: counted, cut by policy, and read as a whole by who called and nobody else."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from mcp import MCPError
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from meshd.policy.document import load
from meshd.policy.problem import LoadError
from meshd.telemetry.spans import Tracer
from tests.gateway.conftest import connect, document, text_of
from tests.gateway.scripted import Raw, Scripted, fields_of, stateless, text, tool
from tests.gateway.servers import Counted
from tests.telemetry.test_spans import Kept

if TYPE_CHECKING:
    from pathlib import Path

MODES = ("legacy", "2026-07-28")
LIMIT = "mcp: {result_tokens_max: 100}\n"
WORDS = " ".join(f"wörd{number}" for number in range(2000))
ROWS = [{"id": number, "name": f"row {number}"} for number in range(500)]


class Long:
    """A server whose tools say much."""

    def __init__(self, *, is_json: bool = False) -> None:
        server = MCPServer("long")

        @server.tool()
        async def read(ctx: Context, steps: int = 0) -> str:
            """Read it all."""
            for step in range(steps):
                await ctx.report_progress(step, steps, "x" * 600)
            return WORDS

        @server.tool()
        def rows() -> list[dict[str, Any]]:
            """Return rows."""
            return ROWS

        @server.tool(structured_output=False)
        def fail() -> str:
            """Fail at length."""
            raise ToolError(WORDS)

        @server.tool()
        def brief() -> str:
            """Say little."""
            return "brief"

        self.app = Counted(server.streamable_http_app(json_response=is_json))


async def before(mesh: Any, serve: Any, more: str = LIMIT, *, is_json: bool = False) -> Any:
    return await mesh(document({"long": await serve(Long(is_json=is_json).app)}, more))


def note_in(result: Any) -> tuple[str, int, str]:
    """Return the id, the place and the address that a cut result tells its model."""
    found = re.search(r'"id": "([\w-]+)", "from": (\d+)}; all of it is the resource (\S+),', result.content[-2].text)
    assert found is not None, result.content[-2].text
    return found[1], int(found[2]), found[3]


@pytest.mark.parametrize("is_json", [True, False])
@pytest.mark.parametrize("mode", MODES)
async def test_a_long_text_is_cut_and_read_on(mesh: Any, serve: Any, mode: str, is_json: bool) -> None:
    made = await before(mesh, serve, is_json=is_json)
    async with connect(made, mode) as one:
        listed = [tool.name for tool in (await one.list_tools()).tools]
        assert listed[-1] == "read_result"
        assert text_of(await one.call_tool("long__brief", {})) == "brief"
        result = await one.call_tool("long__read", {})
        shown, note, link = result.content
        assert WORDS.startswith(shown.text)
        assert 390 <= len(shown.text.encode()) <= 400
        assert "cut to about 100 tokens" in note.text
        id, start, uri = note_in(result)
        assert (link.type, str(link.uri), start) == ("resource_link", uri, len(shown.text))
        said = shown.text
        while start is not None:
            part = await one.call_tool("read_result", {"id": id, "from": start})
            assert len(part.content[0].text.encode()) <= 400
            said += part.content[0].text
            following = re.search(r'"from": (\d+)', part.content[1].text)
            start = None if following is None else int(following[1])
        assert said == WORDS
        whole = (await one.read_resource(uri)).contents
        assert whole[0].text == WORDS
        assert json.loads(whole[1].text) == {"result": WORDS}
        assert uri not in [str(one.uri) for one in (await one.list_resources()).resources]
    results = made.proxy.gateway.results.reading()
    assert results.clipped == (("long", 1),)
    ((name, histogram),) = results.tokens
    assert (name, sum(histogram.counts)) == ("long", 2)
    assert results.bytes[0][1] > 2 * len(WORDS)
    assert results.left_out[0][1] > len(WORDS) // 4 - 100


@pytest.mark.parametrize("mode", MODES)
async def test_structured_content_keeps_its_shape(mesh: Any, serve: Any, mode: str) -> None:
    made = await before(mesh, serve)
    async with connect(made, mode) as one:
        await one.list_tools()
        # The client checks it against the tool's schema, and raises where it does not fit.
        result = await one.call_tool("long__rows", {})
        kept = result.structured_content["result"]
        assert 0 < len(kept) < len(ROWS)
        assert kept[:-1] == ROWS[: len(kept) - 1]
        assert len(json.dumps(result.structured_content)) < 800
        uri = note_in(result)[2]
        assert json.loads((await one.read_resource(uri)).contents[-1].text) == {"result": ROWS}


@pytest.mark.parametrize("mode", MODES)
async def test_an_error_stays_one_and_progress_passes(mesh: Any, serve: Any, mode: str) -> None:
    made = await before(mesh, serve)
    heard: list[str] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message or "")

    async with connect(made, mode) as one:
        failed = await one.call_tool("long__fail", {})
        assert failed.is_error
        assert "cut to about 100 tokens" in failed.content[-2].text
        result = await one.call_tool("long__read", {"steps": 3}, progress_callback=progressed)
        assert not result.is_error
        assert "cut to about 100 tokens" in result.content[-2].text
    assert heard == ["x" * 600] * 3


@pytest.mark.parametrize("mode", MODES)
async def test_without_a_limit_all_of_it_passes_and_is_counted(mesh: Any, serve: Any, mode: str) -> None:
    made = await before(mesh, serve, "")
    async with connect(made, mode) as one:
        assert "read_result" not in [tool.name for tool in (await one.list_tools()).tools]
        assert text_of(await one.call_tool("long__read", {"steps": 2})) == WORDS
        with pytest.raises(MCPError, match="There is no result 'x'"):
            await one.call_tool("read_result", {"id": "x"})
    results = made.proxy.gateway.results.reading()
    assert (results.clipped, results.kept) == ((), 0)
    assert sum(results.tokens[0][1].counts) == 1
    # Once as text, once structured; of a character outside ASCII some servers write six bytes.
    said = 2 * len(json.dumps(WORDS))
    assert 2 * len(WORDS.encode()) < results.bytes[0][1] < said + 1000


async def test_one_server_has_a_limit_of_its_own(mesh: Any, serve: Any) -> None:
    ports = {"short": await serve(Long().app), "wide": await serve(Long().app)}
    made = await mesh(document(ports, LIMIT, {"wide": ", result_tokens_max: 1M"}))
    async with connect(made) as one:
        assert text_of(await one.call_tool("wide__read", {})) == WORDS
        assert text_of(await one.call_tool("short__read", {})) != WORDS


@pytest.mark.parametrize(("more", "has_more"), [("", False), (LIMIT, True)])
async def test_the_size_stands_on_the_span(mesh: Any, upstream: Any, more: str, has_more: bool) -> None:
    made, _ = await behind(mesh, upstream, text(WORDS), more)
    sink = Kept()
    made.telemetry.tracer = Tracer(sink, 1.0, lambda: 0.0)
    await (await Raw(made).open()).call("good__say")
    said = [one.attributes for one in sink.spans if "meshd.tool.result_bytes" in one.attributes]
    assert len(said) == 1
    assert said[0]["meshd.tool.result_bytes"] > len(WORDS)
    assert said[0]["meshd.tool.result_tokens"] == -(-said[0]["meshd.tool.result_bytes"] // 4)
    assert ("meshd.tool.result_tokens_left_out" in said[0]) is has_more


@pytest.mark.parametrize("dialect", ["plain", "a2a"])
def test_a_limit_of_what_is_no_mcp_server_is_refused(tmp_path: Path, dialect: str) -> None:
    words = f'upstreams:\n  x: {{url: "http://127.0.0.1:1", kind: tool, dialect: {dialect}, result_tokens_max: 5}}\n'
    path = tmp_path / "policy.yaml"
    path.write_text(words)
    with pytest.raises(LoadError, match="only an upstream of dialect: mcp"):
        load([path])


# ---------------------------------------------------------------------- whose it is


async def behind(mesh: Any, upstream: Any, result: Any, more: str = LIMIT, **options: Any) -> tuple[Any, Scripted]:
    script = Scripted({"tools/list": {"tools": [tool("say")]}, "tools/call": result, **options})
    return await mesh(document({"good": (await upstream(script)).port}, more)), script


def uri_in(answer: Any) -> str:
    return str(next(one["uri"] for one in answer["result"]["content"] if one["type"] == "resource_link"))


async def read(client: Raw, uri: str, *fields: str) -> Any:
    said = {"method": "resources/read", "params": {"uri": uri}}
    return json.loads((await client.post(said, *fields)).body)


async def test_another_clients_result_does_not_exist(mesh: Any, upstream: Any) -> None:
    made, _ = await behind(mesh, upstream, text(WORDS))
    mine, other = await Raw(made).open(), await Raw(made).open()
    uri = uri_in(await mine.call("good__say"))
    assert (await read(mine, uri))["result"]["contents"][0]["text"] == WORDS
    made_up = uri[:-4] + "0000"
    refused = await read(other, uri)
    assert refused["error"]["message"].replace(uri, made_up) == (await read(mine, made_up))["error"]["message"]
    assert refused["error"]["code"] == -32602
    for client, id in ((other, uri), (mine, made_up)):
        answer = await client.call("read_result", {"id": id.removeprefix("mesh://result/")})
        assert "There is no result" in answer["error"]["message"]
    # Another agent with the same session is none; the session is refused as such.
    made.proxy.gateway.clients[mine.session].agent = "other"
    assert (await read(mine, uri))["error"]["code"] == -32001


async def test_another_workflows_result_does_not_exist(mesh: Any, upstream: Any) -> None:
    made, _ = await behind(mesh, upstream, text(WORDS))
    mine = await Raw(made).open()
    uri = uri_in(await mine.call("good__say", {}, "x-meshd-workflow: one"))
    assert (await read(mine, uri, "x-meshd-workflow: one"))["result"]["contents"]
    assert "error" in await read(mine, uri, "x-meshd-workflow: two")
    assert "error" in await read(mine, uri)


async def test_a_result_is_kept_for_a_while(mesh: Any, upstream: Any) -> None:
    made, _ = await behind(mesh, upstream, text(WORDS), "mcp: {result_tokens_max: 100, result_kept: 5m}\n")
    mine = await Raw(made).open()
    answer = await mine.call("good__say")
    assert "for 5 minutes" in answer["result"]["content"][1]["text"]
    results = made.proxy.gateway.results
    clock = results._clock
    results._clock = lambda: clock() + 299
    assert "result" in await read(mine, uri_in(answer))
    results._clock = lambda: clock() + 301
    assert "error" in await read(mine, uri_in(answer))
    results._sweep()
    assert (results.reading().kept, results.reading().kept_bytes) == (0, 0)


async def test_the_oldest_make_room_and_a_clients_end_is_theirs(mesh: Any, upstream: Any) -> None:
    more = "mcp: {result_tokens_max: 100, results_size: 40kB}\n"
    made, _ = await behind(mesh, upstream, text(WORDS), more)
    mine = await Raw(made).open()
    uris = [uri_in(await mine.call("good__say")) for _ in range(3)]
    assert [("result" in await read(mine, uri)) for uri in uris] == [False, False, True]
    assert made.proxy.gateway.results.reading().kept_bytes <= 40_000
    await mine.send("DELETE", "/mcp", b"", f"mcp-session-id: {mine.session}")
    assert made.proxy.gateway.results.reading().kept == 0


# ---------------------------------------------------------------------- what is in it

BLOB = "QUJD" * 1000
LONG = {"type": "text", "text": "x" * 1000}


async def test_all_else_of_a_result_stays(mesh: Any, upstream: Any) -> None:
    said = {"content": [{**LONG, "annotations": {"priority": 1}}], "isError": True, "_meta": {"a": 1.0}, "new": [1]}
    made, _ = await behind(mesh, upstream, said)
    answer = (await (await Raw(made).open()).call("good__say"))["result"]
    assert answer.pop("content")[0] == {"type": "text", "text": "x" * 400, "annotations": {"priority": 1}}
    assert answer == {"isError": True, "_meta": {"a": 1.0}, "new": [1]}


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ({"type": "audio", "data": BLOB, "mimeType": "audio/wav"}, "[audio, audio/wav, 4,"),
        ({"type": "image", "data": BLOB, "mimeType": "image/png"}, "[image, image/png, 4,"),
        ({"type": "resource", "resource": {"uri": "a://b", "blob": BLOB, "mimeType": "x/y"}}, "[resource, x/y, 4,"),
        ({"type": "new", "data": BLOB}, "[new, 4,"),
        ({"data": BLOB}, "[block of no type, 4,"),
    ],
)
async def test_what_cannot_be_cut_is_named(mesh: Any, upstream: Any, block: Any, shown: str) -> None:
    made, _ = await behind(mesh, upstream, {"content": [block, {"type": "text", "text": "behind"}]})
    mine = await Raw(made).open()
    answer = await mine.call("good__say")
    first, second, *_ = answer["result"]["content"]
    assert first["type"] == "text"
    assert first["text"].startswith(shown)
    assert second["text"] == "behind"
    # No text is left to read on in.
    assert "read_result" not in answer["result"]["content"][2]["text"]
    whole = (await read(mine, uri_in(answer)))["result"]["contents"]
    assert BLOB in json.dumps(whole[0])


async def test_a_picture_costs_what_models_count_and_a_resource_is_cut(mesh: Any, upstream: Any) -> None:
    image = {"type": "image", "data": "QUJD" * 10_000, "mimeType": "image/png"}
    page = {"type": "resource", "resource": {"uri": "a://b", "text": "y" * 9000, "mimeType": "text/plain"}}
    made, _ = await behind(mesh, upstream, {"content": [image, page]}, "mcp: {result_tokens_max: 2000}\n")
    answer = await (await Raw(made).open()).call("good__say")
    first, second, *_ = answer["result"]["content"]
    assert first == image
    assert second["resource"] == {"uri": "a://b", "text": "y" * 1584, "mimeType": "text/plain"}


async def test_a_client_of_2025_03_is_sent_no_link(mesh: Any, upstream: Any) -> None:
    made, _ = await behind(mesh, upstream, text(WORDS))
    mine = await Raw(made).open()
    made.proxy.gateway.clients[mine.session].version = "2025-03-26"
    assert [one["type"] for one in (await mine.call("good__say"))["result"]["content"]] == ["text", "text"]


async def test_the_result_of_a_task_is_cut_within_it(mesh: Any, upstream: Any) -> None:
    task = {"resultType": "complete", "taskId": "t", "status": "completed", "result": text(WORDS)}
    working = {"resultType": "task", "taskId": "t", "status": "working"}
    discovered = {"supportedVersions": ["2026-07-28"], "capabilities": {}, "resultType": "complete"}
    more = {"server/discover": discovered, "tasks/get": task}
    made, script = await behind(mesh, upstream, working, **more)
    raw = Raw(made)
    message = stateless("tools/call", name="good__say", arguments={})
    extensions = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = extensions
    await raw.post(message, *fields_of("tools/call", "good__say"))

    async def get() -> Any:
        reply = await raw.post(stateless("tasks/get", taskId="t"), *fields_of("tasks/get", "t"))
        return json.loads(reply.body)

    got = (await get())["result"]
    assert {**got, "result": text(WORDS)} == task
    assert "cut to about 100 tokens" in got["result"]["content"][1]["text"]
    script.answers["tasks/get"] = {**task, "result": {"content": "x" * 1000}}
    assert "cannot be read" in (await get())["error"]["message"]


# ---------------------------------------------------------------------- nonsense


@pytest.mark.parametrize(
    "result",
    [
        {"content": "x" * 1000},
        {"content": [7, "x" * 1000]},
        {"content": [{"type": 7, "text": "x" * 1000}]},
        {"content": [{"type": "text", "text": ["x" * 1000]}], "structuredContent": 7},
        ["x" * 1000],
        "x" * 1000,
    ],
)
async def test_a_long_result_that_cannot_be_read_is_left_out(mesh: Any, upstream: Any, result: Any) -> None:
    made, _ = await behind(mesh, upstream, result)
    answer = (await (await Raw(made).open()).call("good__say"))["result"]
    if answer != result:
        assert answer["isError"]
        assert "it cannot be read" in answer["content"][0]["text"] or "[block" in answer["content"][0]["text"]
    assert "x" * 401 not in json.dumps(answer)


@pytest.mark.parametrize(
    "result",
    [{}, {"content": []}, {"structuredContent": {"a": 1}}, {"task": {"taskId": "t"}}, {"resultType": "input_required"}],
)
async def test_a_result_without_content_passes(mesh: Any, upstream: Any, result: Any) -> None:
    result = {**result, "_meta": {"much": "x" * 1000}}
    made, _ = await behind(mesh, upstream, result)
    assert (await (await Raw(made).open()).call("good__say"))["result"] == result


def raw_reply(body: bytes, *fields: bytes, type: bytes = b"application/json") -> bytes:
    head = [b"HTTP/1.1 200 OK", b"content-type: " + type, b"content-length: %d" % len(body), *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


async def test_what_is_no_answer(mesh: Any, upstream: Any) -> None:
    made, script = await behind(mesh, upstream, b"")
    mine = await Raw(made).open()
    for body in (
        b"<p>" * 1000,
        b"\xff" * 1000,
        b'{"jsonrpc":"2.0","id":1,"id":1,"result":{"x":"' + b"y" * 999 + b'"}}',
    ):
        script.answers["tools/call"] = raw_reply(body, type=b"text/html")
        reply = await mine.post({"method": "tools/call", "params": {"name": "good__say"}})
        assert "no answer to what was asked" in json.loads(reply.body)["error"]["message"]
    assert made.proxy.gateway.results.reading().tokens == ()


async def test_a_long_error_is_cut(mesh: Any, upstream: Any) -> None:
    said = {"error": {"code": -32000, "message": "m" * 500, "data": {"x": "y" * 5000}}}
    made, _ = await behind(mesh, upstream, said)
    error = (await (await Raw(made).open()).call("good__say"))["error"]
    assert error["code"] == -32000
    assert error["message"].startswith("m" * 400 + " [meshd: about ")
    assert "data" not in error


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_result_of_100_megabytes(mesh: Any, upstream: Any, is_stream: bool) -> None:
    def flood(said: Any) -> bytes:
        body = json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": text("x" * 100_000_000)}).encode()
        if is_stream:
            return raw_reply(b"data: " + body + b"\n\n", type=b"text/event-stream")
        return raw_reply(body)

    made, _ = await behind(mesh, upstream, flood)
    mine = await Raw(made).open()
    reply = (await mine.post({"method": "tools/call", "params": {"name": "good__say"}})).body
    answer = json.loads(reply.split(b"data: ")[1] if is_stream else reply)["result"]
    assert answer["isError"]
    assert "Ask for less" in answer["content"][0]["text"]
    assert made.proxy.gateway.results.reading().kept_bytes == 0


async def test_a_result_of_another_era_is_cut_under_its_callers_id(mesh: Any, upstream: Any) -> None:
    # Its structured content has what looks like a request.
    said = {**text(WORDS), "structuredContent": {"method": "tools/call", "id": 7}}
    made, _ = await behind(mesh, upstream, said)
    message = stateless("tools/call", name="good__say")
    reply = await Raw(made).post(message, *fields_of("tools/call", "good__say"))
    answer = json.loads(reply.body)
    assert answer["id"] == 1
    assert answer["result"]["resultType"] == "complete"
    assert answer["result"]["structuredContent"] == said["structuredContent"]
    assert "cut to about 100 tokens" in answer["result"]["content"][1]["text"]


async def test_an_answer_that_names_a_method_is_no_request(mesh: Any, upstream: Any) -> None:
    def streamed(said: Any) -> bytes:
        body = json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": {"structuredContent": {"method": "x"}}})
        return raw_reply(b"data: " + body.encode() + b"\n\n", type=b"text/event-stream")

    made, _ = await behind(mesh, upstream, streamed, "")
    message = stateless("tools/call", name="good__say")
    reply = await Raw(made).post(message, *fields_of("tools/call", "good__say"))
    assert json.loads(reply.body.split(b"data: ")[1])["id"] == 1


async def test_what_read_result_is_asked(mesh: Any, upstream: Any) -> None:
    made, _ = await behind(mesh, upstream, text(WORDS))
    mine = await Raw(made).open()
    id = uri_in(await mine.call("good__say")).removeprefix("mesh://result/")
    for nonsense in ({}, {"id": 7}, {"id": id, "from": -1}, {"id": id, "from": True}, {"id": id, "from": "0"}):
        assert (await mine.call("read_result", nonsense))["error"]["code"] == -32602
    end = await mine.call("read_result", {"id": id, "from": 10**30})
    assert "end of the result" in end["result"]["content"][0]["text"]
