"""Forms: one way to read each, or none."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.dialects.multipart import PARTS_MAX, Form, is_form, read_form
from meshd.refusal import Reason, Refused

TYPE = b"multipart/form-data; boundary=b7"


def part(name: str, content: bytes = b"x", head: bytes = b"") -> bytes:
    return b'--b7\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), head, content)


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b7--\r\n"


def read(data: bytes, kind: bytes = TYPE) -> Form:
    return read_form(data, [(b"content-type", kind)])


FILE = b'; filename="a.png"\r\ncontent-type: image/png'


def test_fields() -> None:
    data = body(
        part("model", b"gpt-image-1"),
        part("image[]", b"\r\n--b\r\n\xff", FILE),
        part("image[]", b"", FILE),
        part("n", b"2"),
    )
    form = read(data)
    assert [(one.name, one.is_file, data[one.begin : one.end]) for one in form.parts] == [
        ("model", False, b"gpt-image-1"),
        ("image", True, b"\r\n--b\r\n\xff"),
        ("image", True, b""),
        ("n", False, b"2"),
    ]
    assert (form.text("model"), form.text("size"), form.integer("n", least=1, most=10)) == ("gpt-image-1", None, 2)
    assert form.texts == b"gpt-image-12"


@pytest.mark.parametrize(
    "kind",
    [
        b"multipart/form-data; boundary=b7",
        b'multipart/form-data; boundary="b7"',
        b"Multipart/Form-Data;boundary=b7",
        b"multipart/form-data ; boundary=b7 ",
    ],
)
def test_the_usual_ways_to_say_a_boundary(kind: bytes) -> None:
    assert is_form([(b"accept", b"x"), (b"content-type", kind)])
    assert read(body(part("a")), kind).text("a") == "x"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        None,
        [(b"content-type", TYPE), (b"content-type", TYPE)],
        [(b"content-type", b"multipart/form-data")],
        [(b"content-type", b"multipart/form-data; boundary=")],
        [(b"content-type", b"multipart/form-data; boundary=b7; boundary=b8")],
        [(b"content-type", b"multipart/form-data; charset=utf-16; boundary=b7")],
        [(b"content-type", b"multipart/form-data; boundary=b7; x=y")],
        [(b"content-type", b"multipart/mixed; boundary=b7")],
        [(b"content-type", b"multipart/form-data; boundary*=b7")],
        [(b"content-type", b"multipart/form-data; boundary=" + b"b" * 71)],
        [(b"content-type", b"multipart/form-data; boundary=b8")],
        [(b"content-type", b"application/json")],
    ],
)
def test_a_boundary_that_servers_could_read_in_two_ways_is_refused(headers: Any) -> None:
    with pytest.raises(Refused) as caught:
        read_form(body(part("model")), headers)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"--b7--\r\n",
        b"--b7\r\n--b7--\r\n",
        b"preamble\r\n" + body(part("a")),
        b"\r\n" + body(part("a")),
        body(part("a")) + b"epilogue",
        body(part("a"))[:-4],
        part("a"),
        body(part("a")).replace(b"\r\n", b"\n"),
        body(b"--b7\r\n\r\nx\r\n"),
        body(b"--b7\r\ncontent-type: text/plain\r\n\r\nx\r\n"),
        body(
            b'--b7\r\ncontent-disposition: form-data; name="a"\r\ncontent-disposition: form-data; name="b"\r\n\r\nx\r\n'
        ),
        body(b'--b7\r\ncontent-disposition: form-data; name="a"; name="b"\r\n\r\nx\r\n'),
        body(b"--b7\r\ncontent-disposition: form-data; name=a\r\n\r\nx\r\n"),
        body(b'--b7\r\ncontent-disposition: form-data; name="a\\"b"\r\n\r\nx\r\n'),
        body(b"--b7\r\ncontent-disposition: form-data; name*=utf-8''a\r\n\r\nx\r\n"),
        body(b'--b7\r\ncontent-disposition: attachment; name="a"\r\n\r\nx\r\n'),
        body(b'--b7\r\n content-disposition: form-data; name="a"\r\n\r\nx\r\n'),
        body(b'--b7\r\nx: y\r\n folded\r\ncontent-disposition: form-data; name="a"\r\n\r\nx\r\n'),
        body(b'--b7\r\ncontent-disposition : form-data; name="a"\r\n\r\nx\r\n'),
        body(b'--b7\r\ncontent-disposition: form-data; name="\xff"\r\n\r\nx\r\n'),
        body(b'--b7\r\ncontent-disposition: form-data; name="a"\r\n\r\n--b7\r\nx\r\n'),
        body(part("a", b"x\r\n--b7 \r\ny")),
        body(part("a", b"x\r\n--b7y")),
        body(part("a", head=b"\r\nx: " + b"y" * 5_000)),
        body(*[part("a")] * (PARTS_MAX + 1)),
    ],
)
def test_a_form_that_servers_could_take_apart_in_two_ways_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read(data)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "parts",
    [
        [part("model"), part("model")],
        [part("model"), part("model[]")],
        [part("model", head=b'; filename="m"')],
        [part("model", b"\xff")],
        [part("model", head=b"\r\ncontent-transfer-encoding: base64")],
        [part("model", head=b"\r\ncontent-type: text/plain; charset=utf-16")],
    ],
)
def test_what_decides_is_one_plain_text(parts: list[bytes]) -> None:
    with pytest.raises(Refused, match="form"):
        read(body(*parts)).text("model")


@pytest.mark.parametrize("content", [b"0", b"11", b"-1", b"2.0", b"two", b" 2", b"1" * 12, "\u0662".encode()])
def test_a_number_is_one(content: bytes) -> None:
    with pytest.raises(Refused, match="'n' must be an integer from 1 to 10"):
        read(body(part("n", content))).integer("n", least=1, most=10)


@pytest.mark.parametrize(
    ("content", "is_set"),
    [(b"true", True), (b"True", True), (b"1", True), (b"x", True), (b"false", False), (b"", False)],
)
def test_a_flag_is_set_in_doubt(content: bytes, is_set: bool) -> None:
    assert read(body(part("stream", content))).flag("stream") is is_set


def test_a_field_is_replaced_in_its_place_or_put_in_front() -> None:
    data = body(part("image", b"\xff", FILE), part("model", b"dear"), part("n", b"1"))
    assert read(data).replaced("model", "cheap") == data.replace(b"dear", b"cheap")
    data = body(part("image", b"\xff", FILE))
    form = read(read(data).replaced("model", "cheap"))
    assert [one.name for one in form.parts] == ["model", "image"]
    assert form.text("model") == "cheap"
    with pytest.raises(Refused, match="breaks the line"):
        read(data).replaced("model", "a\r\n--b7")


async def written(fields: dict[str, str], content: bytes) -> tuple[Form, bytes]:
    """A form as an HTTP client writes it, read."""
    data = aiohttp.FormData(fields)
    data.add_field("file", content, filename="a.wav")
    payload = data()
    whole = await payload.as_bytes()
    return read_form(whole, [(b"content-type", payload.headers["content-type"].encode())]), whole


@given(
    fields=st.dictionaries(st.text("abcdef_[]", min_size=1, max_size=9), st.text(max_size=40), max_size=5),
    content=st.binary(max_size=200),
)
def test_what_a_client_writes_is_read(fields: dict[str, str], content: bytes) -> None:
    form, whole = asyncio.run(written(fields, content))
    texts = [whole[one.begin : one.end].decode() for one in form.parts if not one.is_file]
    files = [whole[one.begin : one.end] for one in form.parts if one.is_file]
    assert (texts, files) == (list(fields.values()), [content])


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda data: body(part("a", data), data, part("b"))))
def test_any_bytes_are_a_form_or_a_refusal(data: bytes) -> None:
    try:
        form = read(data)
    except Refused:
        return
    assert all(data[one.end : one.end + 6] == b"\r\n--b7" for one in form.parts)
