"""What a request file says, and where it goes: formats and checks, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from typing import Any, TypeGuard

from headgate.errors import ConfigurationError, InvalidRequest
from headgate.integrations.celery.mediator.settings import Service, Settings, field_fault
from headgate.integrations.celery.mediator.urls import PUBLIC_PORTS, Url, read_url

METHODS = frozenset("DELETE GET HEAD OPTIONS PATCH POST PUT".split())

_FIELDS = "endpoint payload method headers cost callback metadata".split()
_TASK_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_RELATIVE = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):(/(?!/).*|)")
# They would ask for what is not read here, or are the mediator's own.
_RESERVED = frozenset({"accept-encoding"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request file, checked as far as it can be without settings.

    Attributes:
        endpoint: an absolute URL, or ``NAME:/path`` at a service.
        payload: sent as JSON; None for no body.
        headers: names in lower case.
        cost: {meter: units}, where the settings' estimate is not to be believed.
        callback: a URL, not yet vetted.
        metadata: stands in the response, too.
    """

    endpoint: str
    payload: Any = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, int] = field(default_factory=dict)
    callback: str | None = None
    metadata: Any = None

    @property
    def body(self) -> bytes | None:
        """The payload as JSON, in ASCII."""
        return None if self.payload is None else _json(self.payload).encode()


def is_task_id(task_id: object) -> TypeGuard[str]:
    """Letters, digits, ``.``, ``_`` and ``-``, at most 200, not starting with a dot: a safe object name."""
    return isinstance(task_id, str) and _TASK_ID.fullmatch(task_id) is not None


def check_task_id(task_id: object) -> str:
    """The id itself.

    Raises:
        InvalidRequest: it cannot be part of an object's name.
    """
    if not is_task_id(task_id):
        raise InvalidRequest(
            "task_id: expected 1 to 200 letters, digits, '.', '_' and '-', not starting with a dot; "
            f"got {task_id!r:.80}"
        )
    return task_id


def request_name(task_id: str) -> str:
    """The object in which a request lies."""
    return f"{task_id}.request.json"


def read_request(data: bytes) -> Request:
    """What a request file says.

    Raises:
        InvalidRequest: what was expected, and what came.
    """
    return request_of(_parse(data))


def request_of(values: object) -> Request:
    """The same of JSON that has been parsed.

    Raises:
        InvalidRequest
    """
    if not isinstance(values, Mapping):
        raise InvalidRequest(f"expected a JSON object; got {_kind(values)}")
    for name in values:
        if name not in _FIELDS:
            nearest = get_close_matches(str(name), _FIELDS, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(_FIELDS)}"
            raise InvalidRequest(f"{str(name)[:80]!r}: there is no such field; {hint}")
    endpoint, callback = values.get("endpoint"), values.get("callback")
    if not isinstance(endpoint, str) or not endpoint:
        raise InvalidRequest(f"endpoint: expected a URL, or 'NAME:/path' at a service; got {_kind(endpoint)}")
    if callback is not None and not isinstance(callback, str):
        raise InvalidRequest(f"callback: expected a URL; got {_kind(callback)}")
    method = values.get("method", "POST")
    if not isinstance(method, str) or method not in METHODS:
        raise InvalidRequest(f"method: expected one of {', '.join(sorted(METHODS))}; got {method!r:.40}")
    request = Request(
        endpoint=endpoint,
        payload=values.get("payload"),
        method=method,
        headers=_headers(values.get("headers") or {}),
        cost=_cost(values.get("cost") or {}),
        callback=callback,
        metadata=values.get("metadata"),
    )
    try:
        canonical(values)
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequest("expected what JSON can say: no infinite numbers, not too deep") from None
    return request


def callback_of(data: bytes) -> str | None:
    """Whom to call back, as far as a request file tells, valid or not."""
    try:
        values = _parse(data)
    except InvalidRequest:
        return None
    callback = values.get("callback") if isinstance(values, Mapping) else None
    return callback if isinstance(callback, str) else None


def canonical(values: Any) -> bytes:
    """The same bytes for the same JSON."""
    return _json(values, sort_keys=True).encode()


def digest_of(values: Any) -> str:
    """A task id that the same request always gets: 128 bits of its SHA-256."""
    return sha256(canonical(values)).hexdigest()[:32]


def find_service(request: Request, settings: Settings) -> tuple[Service, Url]:
    """The service of a request, and the URL that is called.

    Raises:
        InvalidRequest: none is configured for it, or it may not be called like that.
    """
    service, url = _service_of(request.endpoint, settings)
    for name in request.headers:
        if name in service.headers or name in service.secret_headers or name == service.idempotency_header:
            raise InvalidRequest(f"headers: {name!r} is set by the service {service.name!r}")
    meters = {limit.meter for limit in service.limits}
    for meter in request.cost:
        if meter not in meters:
            known = ", ".join(sorted(meters))
            raise InvalidRequest(f"cost: no limit of {service.name!r} counts {meter!r}; they count {known}")
    return service, url


def _service_of(endpoint: str, settings: Settings) -> tuple[Service, Url]:
    known = ", ".join(settings.services) or "none"
    relative = _RELATIVE.fullmatch(endpoint)
    if relative:
        service = settings.services.get(relative[1])
        if service is None:
            raise InvalidRequest(f"endpoint: there is no service {relative[1][:80]!r}; there are: {known}")
        base = service.endpoint
        endpoint = f"{base.scheme}://{base.netloc}{base.path.rstrip('/')}{relative[2]}"
    try:
        url = read_url(endpoint)
    except ConfigurationError as error:
        raise InvalidRequest(f"endpoint: {error}") from None
    found = [service for service in settings.services.values() if service.endpoint.covers(url)]
    if not found:
        raise InvalidRequest(f"endpoint: {url.shown} belongs to no service; there are: {known}")
    return max(found, key=lambda service: len(service.endpoint.path.rstrip("/"))), url


def vet_callback(text: str, settings: Settings) -> tuple[Url, bool]:
    """Whom to call back, and whether it has to be at a public address.

    Raises:
        InvalidRequest: it is no URL, or one that may not be called.
    """
    try:
        url = read_url(text)
    except ConfigurationError as error:
        raise InvalidRequest(f"callback: {error}") from None
    allow = settings.callbacks.allow
    if any(prefix.covers(url) for prefix in allow):
        return url, False
    if allow:
        raise InvalidRequest(f"callback: {url.shown} is not among what callbacks.allow allows")
    if url.port not in PUBLIC_PORTS:
        ports = ", ".join(map(str, sorted(PUBLIC_PORTS)))
        raise InvalidRequest(f"callback: expected one of the ports {ports}; got {url.port}")
    return url, True


def _headers(values: object) -> dict[str, str]:
    if not isinstance(values, Mapping):
        raise InvalidRequest(f"headers: expected an object of texts; got {_kind(values)}")
    found: dict[str, str] = {}
    for name, value in values.items():
        why = field_fault(name, value)
        if why is None and name.lower() in _RESERVED:
            why = "it cannot be set"
        if why is None and name.lower() in found:
            why = "it is there twice"
        if why:
            raise InvalidRequest(f"headers: {str(name)[:80]!r}: {why}")
        found[name.lower()] = value
    return found


def _cost(values: object) -> dict[str, int]:
    if not isinstance(values, Mapping):
        raise InvalidRequest(f"cost: expected an object of units; got {_kind(values)}")
    for meter, units in values.items():
        if type(units) is not int or units < 0:
            raise InvalidRequest(
                f"cost: expected whole units, 0 or more; got {str(meter)[:80]!r}: {units!r:.40}"
            )
    if values.get("requests", 1) < 1:
        raise InvalidRequest("cost: a request counts as one at least; got 'requests': 0")
    return dict(values)


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        # Not what it says of the text: it may be anything.
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidRequest(f"expected a JSON object; that is no JSON{where}") from None


def _json(values: Any, *, sort_keys: bool = False) -> str:
    return json.dumps(values, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
