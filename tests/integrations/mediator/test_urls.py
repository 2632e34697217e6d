"""Where a request may go."""

from __future__ import annotations

import pytest

from headgate.errors import ConfigurationError
from headgate.integrations.celery.mediator.urls import is_public, read_url


@pytest.mark.parametrize(
    ("text", "host", "port", "target", "netloc"),
    [
        ("https://API.example.com/v1?x=1", "api.example.com", 443, "/v1?x=1", "api.example.com"),
        ("http://example.com", "example.com", 80, "/", "example.com"),
        ("https://example.com.:8443/a", "example.com", 8443, "/a", "example.com:8443"),
        ("http://[::1]:81/", "::1", 81, "/", "[::1]:81"),
        ("https://example.com/a..b/...", "example.com", 443, "/a..b/...", "example.com"),
    ],
)
def test_plain_urls_are_read(text: str, host: str, port: int, target: str, netloc: str) -> None:
    url = read_url(text)
    assert (url.host, url.port, url.target, url.netloc) == (host, port, target, netloc)


@pytest.mark.parametrize(
    "text",
    [
        "", "example.com/x", "ftp://example.com", "file:///etc/passwd", "https:example.com",
        "https:/example.com", "//example.com", "https://", "https://user@example.com", "https://user:pass@example.com/",
        "https://example.com@evil.example/", "https://example.com\\@evil.example/", "https://example.com/a\\b",
        "https://example.com/#x", "https://example.com#", "https://exa mple.com/", "https://example.com/\n",
        "https://example.com/\x00", "https://exämple.com/", "https://example.com:99999/", "https://example.com:0/",
        "https://example.com:x/", "https://[::1/", "https://[fe80::1%25eth0]/", "https://[example.com]/",
        "https://-example.com/", "https://a..b/", "https://example.com/../x", "https://example.com/a/./b",
        "https://example.com/%2e%2e/x", "https://example.com/%2E/x", "https://example.com/a%2f..%2fb",
        "https://example.com/%252e%252e/x", "https://example.com/..;x=1/y",
        "https://example.com/" + "a" * 9000, None, 7, ["https://example.com"],
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_refused(text: object) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        read_url(text)


def test_errors_do_not_show_a_password() -> None:
    with pytest.raises(ConfigurationError) as error:
        read_url("https://user:hunter2@example.com/")
    assert "hunter2" not in str(error.value)
    assert "hunter2" not in repr(read_url("https://example.com/?key=hunter2"))


@pytest.mark.parametrize(
    ("prefix", "url", "covers"),
    [
        ("https://a.com", "https://a.com/anything", True),
        ("https://a.com/v1", "https://a.com/v1", True),
        ("https://a.com/v1/", "https://a.com/v1", True),
        ("https://a.com/v1/", "https://a.com/v1/x?y", True),
        ("https://a.com/v1", "https://a.com/v12", False),
        ("https://a.com/v1", "https://a.com/V1", False),
        ("https://a.com/v1", "https://a.com/", False),
        ("https://a.com/v1", "https://a.com//v1", False),
        ("https://a.com", "http://a.com/", False),
        ("https://a.com", "https://a.com:444/", False),
        ("https://a.com:443", "https://a.com/", True),
        ("https://a.com", "https://a.com.evil.com/", False),
        ("https://a.com", "https://b.a.com/", False),
    ],
)
def test_a_prefix_covers_whole_segments(prefix: str, url: str, covers: bool) -> None:
    assert read_url(prefix, prefix=True).covers(read_url(url)) is covers


def test_a_prefix_has_no_query() -> None:
    with pytest.raises(ConfigurationError, match="query"):
        read_url("https://a.com/?x", prefix=True)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "0.0.0.0", "0.1.2.3", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1",
        "198.18.0.1", "203.0.113.9", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "168.63.129.16",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
        "2001:db8::1", "3fff::1", "100::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b:1::1",
        "2002:7f00:1::", "2001:0:53aa:64c:0:0:80ff:fffe", "::127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_the_internets(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"],
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)
