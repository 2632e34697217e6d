"""Request files, and where they go."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headgate.errors import InvalidRequest
from headgate.integrations.celery.mediator.request import (
    callback_of,
    digest_of,
    find_service,
    is_task_id,
    read_request,
    request_of,
    vet_callback,
)
from headgate.integrations.celery.mediator.settings import Settings

LIMITS = ["requests=5/s"]


def settings(**more: Any) -> Settings:
    services = {
        "a": {"endpoint": "https://a.com", "limits": LIMITS, "secret_headers": {"X-Key": "${K}"}},
        "v1": {"endpoint": "https://a.com/v1/", "limits": LIMITS, "headers": {"X-Fixed": "1"}},
        "v1x": {"endpoint": "https://a.com/v1/x", "limits": LIMITS},
    }
    least = {"storage": "memory://x", "broker": "redis://localhost", "store": "redis://localhost"}
    return Settings.of({**least, "services": services, **more})


def test_all_fields_are_read() -> None:
    request = request_of(
        {
            "endpoint": "a:/x",
            "payload": {"n": 1},
            "method": "PUT",
            "headers": {"X-Mine": "yes"},
            "cost": {"requests": 2},
            "callback": "https://b.com/",
            "metadata": [1, None],
        }
    )
    assert request.body == b'{"n":1}'
    assert (request.method, request.headers, request.cost) == ("PUT", {"x-mine": "yes"}, {"requests": 2})
    assert request_of({"endpoint": "a:/x"}).body is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "expected a JSON object; got a list"),
        (b"null", "got nothing"),
        (b"{}", "endpoint: expected a URL"),
        (b'{"endpoint":""}', "endpoint: expected a URL"),
        (b'{"endpoint":"a:/","payload":1e999}', "no infinite numbers"),
        (b'{"endpoint":"a:/","payload":NaN}', "no infinite numbers"),
        (b'{"endpoint":"a:/","endpont":1}', "did you mean 'endpoint'"),
        (b'{"endpoint":"a:/","zzz":1}', "there are endpoint, payload"),
        (b'{"endpoint":"a:/","method":"CONNECT"}', "method: expected one of"),
        (b'{"endpoint":"a:/","method":["GET"]}', "method: expected one of"),
        (b'{"endpoint":"a:/","callback":5}', "callback: expected a URL; got a int"),
        (b'{"endpoint":"a:/","headers":["x"]}', "headers: expected an object"),
        (b'{"endpoint":"a:/","headers":{"Host":"x"}}', "belongs to the connection"),
        (b'{"endpoint":"a:/","headers":{"Transfer-Encoding":"chunked"}}', "belongs to the connection"),
        (b'{"endpoint":"a:/","headers":{"Content-Length":"5"}}', "belongs to the connection"),
        (b'{"endpoint":"a:/","headers":{"x":"a\\r\\nEvil: 1"}}', "printable ASCII"),
        (b'{"endpoint":"a:/","headers":{"x:y":"a"}}', "name of a header"),
        (b'{"endpoint":"a:/","headers":{"x":5}}', "printable ASCII"),
        (b'{"endpoint":"a:/","headers":{"x":"1","X":"2"}}', "there twice"),
        (b'{"endpoint":"a:/","headers":{"Accept-Encoding":"br"}}', "cannot be set"),
        (b'{"endpoint":"a:/","cost":{"tokens":-1}}', "whole units"),
        (b'{"endpoint":"a:/","cost":{"tokens":1.5}}', "whole units"),
        (b'{"endpoint":"a:/","cost":{"tokens":true}}', "whole units"),
        (b'{"endpoint":"a:/","cost":{"requests":0}}', "counts as one at least"),
    ],
)
def test_mistakes_are_told(data: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_request(data)


def test_lone_surrogates_can_be_sent() -> None:
    assert read_request(b'{"endpoint":"a:/","payload":"\\ud800"}').body == b'"\\ud800"'


@pytest.mark.parametrize(
    ("endpoint", "service", "url"),
    [
        ("https://a.com/", "a", "https://a.com/"),
        ("https://A.com/v1", "v1", "https://a.com/v1"),
        ("https://a.com/v1/y?q=1", "v1", "https://a.com/v1/y"),
        ("https://a.com/v1/x/z", "v1x", "https://a.com/v1/x/z"),
        ("https://a.com/v1/xx", "v1", "https://a.com/v1/xx"),
        ("v1:/chat", "v1", "https://a.com/v1/chat"),
        ("v1:/x/y", "v1x", "https://a.com/v1/x/y"),
        ("a:", "a", "https://a.com/"),
    ],
)
def test_the_longest_prefix_is_the_service(endpoint: str, service: str, url: str) -> None:
    found, where = find_service(request_of({"endpoint": endpoint}), settings())
    assert (found.name, where.shown) == (service, url)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"endpoint": "https://b.com/"}, "belongs to no service; there are: a, v1, v1x"),
        ({"endpoint": "http://a.com/"}, "belongs to no service"),
        ({"endpoint": "https://a.com:8443/"}, "belongs to no service"),
        ({"endpoint": "https://a.com.b.com/"}, "belongs to no service"),
        ({"endpoint": "https://a.com@b.com/"}, "without user"),
        ({"endpoint": "http://169.254.169.254/latest"}, "belongs to no service"),
        ({"endpoint": "https://a.com/v1/../admin"}, "'..'"),
        ({"endpoint": "v1:/../admin"}, "'..'"),
        ({"endpoint": "v1:/%2e%2e/admin"}, "'..'"),
        ({"endpoint": "b:/x"}, "there is no service 'b'"),
        ({"endpoint": "v1://b.com/"}, "expected http"),
        ({"endpoint": "file:///etc/passwd"}, "expected http"),
        ({"endpoint": "a:/x", "headers": {"X-KEY": "mine"}}, "'x-key' is set by the service"),
        ({"endpoint": "v1:/y", "headers": {"x-fixed": "2"}}, "'x-fixed' is set by the service"),
        ({"endpoint": "a:/x", "headers": {"Idempotency-Key": "2"}}, "is set by the service"),
        ({"endpoint": "a:/x", "cost": {"tokens": 2}}, "no limit of 'a' counts 'tokens'"),
    ],
)
def test_what_may_not_be_called_is_refused(request_: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        find_service(request_of(request_), settings())


def test_callbacks_go_where_they_are_allowed_to() -> None:
    told = settings(callbacks={"allow": ["http://hooks.internal:9000/done"]})
    assert vet_callback("http://hooks.internal:9000/done/7?x=1", told)[1] is False
    for text in ("http://hooks.internal:9000/other", "https://hooks.internal:9000/done", "https://b.com/"):
        with pytest.raises(InvalidRequest, match="not among"):
            vet_callback(text, told)


def test_callbacks_to_anybody_go_to_public_addresses_on_usual_ports() -> None:
    told = settings()
    assert vet_callback("https://b.com/done", told)[1] is True
    assert vet_callback("http://b.com:8080/", told)[1] is True
    for text, says in [
        ("https://b.com:22/", "expected one of the ports 80, 443"),
        ("http://b.com:6379/", "expected one of the ports"),
        ("https://u:p@b.com/", "without user"),
        ("gopher://b.com/", "expected http"),
        ("", "callback: expected a URL"),
    ]:
        with pytest.raises(InvalidRequest, match=says):
            vet_callback(text, told)


def test_invalid_requests_are_called_back_too() -> None:
    assert callback_of(b'{"callback":"https://b.com/","nonsense":1}') == "https://b.com/"
    for data in (b"{", b"[]", b'{"callback":5}', b"{}"):
        assert callback_of(data) is None


def test_ids_are_safe_names() -> None:
    good = ["a", "7f3a", "a.b-c_d", "a..b", "-x", "x" * 200]
    bad = ["", ".", "..", ".a", "a/b", "../a", "a\\b", "a b", "ä", "a\n", "a%2f", "x" * 201, None, 7, ["a"]]
    assert all(map(is_task_id, good))
    assert not any(map(is_task_id, bad))


def test_an_id_is_made_of_what_a_request_says() -> None:
    one = digest_of(json.loads('{"endpoint":"a:/","payload":{"x":1,"y":2}}'))
    assert one == digest_of(json.loads('{"payload":{"y":2,"x":1}, "endpoint":"a:/"}'))
    assert one != digest_of(json.loads('{"payload":{"y":2,"x":2}, "endpoint":"a:/"}'))
    assert is_task_id(one)
