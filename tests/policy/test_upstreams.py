"""What a URL of an upstream may be, and that no spelling of a metadata address passes."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.policy.upstreams import WELL_KNOWN, is_metadata_host, parse_url

FORBIDDEN = [
    "169.254.169.254",
    "169.254.169.254.",
    "2852039166",
    "0xa9fea9fe",
    "0xA9.0xFE.0xA9.0xFE",
    "0251.0376.0251.0376",
    "169.254.43518",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[FD00:0EC2:0:0:0:0:0:0254]",
    "169.254.170.2",
    "100.100.100.200",
    "metadata.google.internal",
    "METADATA.google.internal.",
    "metadata",
    "[fd20:ce::254]",
]


@pytest.mark.parametrize("host", FORBIDDEN)
@pytest.mark.parametrize("form", ["http://{}", "https://{}:8443/latest"])
def test_metadata_services_are_never_upstreams(host: str, form: str) -> None:
    with pytest.raises(ValueError, match="metadata service"):
        parse_url(form.format(host))


@pytest.mark.parametrize(
    "host", ["169.254.1.2", "127.0.0.1", "10.0.0.1", "metadata.example.com", "::1", "0", "256.1.1.1", ""]
)
def test_other_hosts_are_no_metadata_services(host: str) -> None:
    assert not is_metadata_host(host)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://x", "expected a URL"),
        ("api.openai.com", "expected a URL"),
        ("HTTP://x", "expected a URL"),
        ("http:///path", "not a host name"),
        ("http://", "not a host name"),
        ("http://u@x", "no user"),
        ("http://u:p@x", "no user"),
        ("http://@x", "no user"),
        ("http://x?q=1", "no query"),
        ("http://x/?", "no query"),
        ("http://x#f", "no fragment"),
        ("http://x/#", "no fragment"),
        ("http://x:0", "no usable port"),
        ("http://x:", "no usable port"),
        ("http://x:65536", "is not a URL"),
        ("http://x:a", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("http://[::g]", "not an IPv6 address|not a URL|does not appear"),
        ("http://[fe80::1%25eth0]", "no zone"),
        ("http://x y", "no spaces"),
        ("http://x\n", "no spaces"),
        ("http://x\\y", "backslashes"),
        ("http://x/a/../b", "plain segments"),
        ("http://x/./b", "plain segments"),
        ("http://x//b", "plain segments"),
        ("http://x/%2e%2e", "plain segments"),
        ("http://münchen.example", "ASCII form"),
        ("http://-x", "not a host name"),
        ("http://x..y", "not a host name"),
        ("http://" + "a" * 64, "not a host name"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.openai.com", ("https", "api.openai.com", 443, "", b"api.openai.com")),
        ("https://API.OpenAI.com:443/v1/", ("https", "api.openai.com", 443, "/v1", b"api.openai.com")),
        ("http://127.0.0.1:11434", ("http", "127.0.0.1", 11434, "", b"127.0.0.1:11434")),
        ("http://[::1]:80/a/b//", ("http", "::1", 80, "/a/b", b"[::1]")),
        ("https://x:80", ("https", "x", 80, "", b"x:80")),
        ("http://my_pod.ns.svc:1/", ("http", "my_pod.ns.svc", 1, "", b"my_pod.ns.svc:1")),
    ],
)
def test_urls_that_are_taken_apart(url: str, expected: tuple[object, ...]) -> None:
    found = parse_url(url)
    assert (found.scheme, found.host, found.port, found.base_path, found.authority) == expected


@given(st.text(max_size=30) | st.builds("http://{}{}".format, st.text(max_size=20), st.text(max_size=10)))
def test_any_text_is_a_clean_location_or_refused(url: str) -> None:
    try:
        found = parse_url(url)
    except ValueError:
        return
    assert 0 < found.port < 65536
    assert found.host
    again = parse_url(found.url)
    assert again == found
    assert all(33 <= byte <= 126 for byte in found.authority)
    assert urlsplit(found.url).username is None


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_the_well_known_are_fit_to_be_called(name: str) -> None:
    url, _ = WELL_KNOWN[name]
    location = parse_url(url)
    assert location.url == url
    assert location.scheme == "https" or location.host == "127.0.0.1"
    # The base URL that an SDK is given ends in /v1 by itself.
    assert not location.base_path.endswith("/v1")
