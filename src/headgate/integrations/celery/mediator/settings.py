"""What the mediator is told: a TOML file and the environment, checked and frozen.

No secret is in here: headers name the variables that hold them, and URLs with passwords are not shown.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from headgate.core.model import Limit
from headgate.core.text import parse_limits
from headgate.errors import ConfigurationError
from headgate.integrations.celery.mediator.secrets import Secret
from headgate.integrations.celery.mediator.urls import Url, read_url
from headgate.limiter import OPTIONS
from headgate.providers.preset import Preset
from headgate.providers.resets import PROVIDERS, Resets, resets_of

PREFIX = "HEADGATE_MEDIATOR_"
"""Of the environment's variables: ``HEADGATE_MEDIATOR_STORAGE`` overrules ``storage`` in the file."""
FILE = "headgate-mediator.toml"
"""In the working directory, unless ``HEADGATE_MEDIATOR_CONFIG`` names another."""
CALLBACK_LIMITS = ("requests=50/s:burst=50:start=full", "concurrency=16")
"""Of each host that is called back, unless told otherwise. One that is slow takes no more slots than that."""

_TOP = (
    "storage broker backend store queue visibility_timeout_seconds largest_request_bytes "
    "largest_response_bytes services callbacks"
).split()
_SERVICE = (
    "endpoint limits preset key headers secret_headers timeout_seconds attempts idempotency_header cost "
    "headers_dialect token_header requests_header"
).split()
_CALLBACKS = "allow limits attempts give_up_seconds timeout_seconds secret_headers".split()
_SERVICE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t -~]*")
_FRAMING = frozenset(
    "connection content-length expect host keep-alive proxy-authenticate proxy-authorization "
    "proxy-connection te trailer transfer-encoding upgrade".split()
)
"""Fields that belong to the connection, not to the request (RFC 9110 7.6.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """An API that may be called.

    Attributes:
        name: in ``endpoint``: ``NAME:/path``, and of the budget unless ``key`` says otherwise.
        endpoint: what the URLs of its requests begin with.
        limits: those of the API, or its preset's.
        preset: tells costs and usage; None for costs of requests alone.
        headers: sent with each request.
        secret_headers: likewise; their values come from the environment.
        timeout_seconds: from sending a request until its answer has been read.
        attempts: those that may fail; refusals for the rate do not count.
        idempotency_header: carries the task's id; empty for none.
        cost: {meter: units} of each request that says nothing else.
        resets: fields of its answers that tell how long a throttle lasts; None to go by Retry-After alone.
    """

    name: str
    endpoint: Url
    limits: tuple[Limit, ...]
    preset: Preset | None = None
    key: str
    headers: Mapping[str, str] = field(default_factory=dict)
    secret_headers: Mapping[str, Secret] = field(default_factory=dict)
    timeout_seconds: float = 120.0
    attempts: int = 6
    idempotency_header: str = "idempotency-key"
    cost: Mapping[str, int] = field(default_factory=dict)
    resets: Resets | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Who may be called back, and how.

    Attributes:
        allow: what their URLs begin with; empty for any public address.
        limits: of each host.
        attempts: those that may fail for reasons of that callback alone.
        give_up_seconds: how long to wait for a host that does not answer.
        timeout_seconds: from connecting until the answer's head.
        secret_headers: sent with each; only together with ``allow``.
    """

    allow: tuple[Url, ...] = ()
    limits: tuple[Limit, ...] = field(default_factory=lambda: parse_limits(CALLBACK_LIMITS))
    attempts: int = 20
    give_up_seconds: float = 86_400.0
    timeout_seconds: float = 10.0
    secret_headers: Mapping[str, Secret] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that the mediator is told; ``Settings.load()`` reads it.

    Attributes:
        storage: URL of the object storage; see :func:`headgate.integrations.storage.open_storage`.
        broker: URL of Celery's broker.
        backend: URL of Celery's result backend; None for none: what came of a task is in storage.
        store: URL of the store of limits, which all workers reach.
        queue: the name of the queue of all tasks.
        visibility_timeout_seconds: of Redis as a broker: after so long it takes a task for lost and gives it
            to another worker. More than the longest call takes.
        largest_request_bytes, largest_response_bytes: of a request file, and of an answer's body.
        services: by name.
    """

    storage: str
    broker: str = field(repr=False)
    backend: str | None = field(default=None, repr=False)
    store: str = field(repr=False)
    queue: str = "mediator"
    visibility_timeout_seconds: float
    largest_request_bytes: int = 16 << 20
    largest_response_bytes: int = 64 << 20
    services: Mapping[str, Service] = field(default_factory=dict)
    callbacks: Callbacks = field(default_factory=Callbacks)

    @classmethod
    def load(cls, file: str | Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the file and the environment.

        Args:
            file: None for what ``HEADGATE_MEDIATOR_CONFIG`` names, else ``headgate-mediator.toml`` if it is
                there; everything may come from the environment.
            environment: None for this process's own.

        Raises:
            ConfigurationError: what is missing, unknown or makes no sense.
        """
        given = dict(os.environ if environment is None else environment)
        values = _of_file(file or given.get(f"{PREFIX}CONFIG"))
        values.update(_of_environment(given))
        return cls.of(values)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Settings:
        """Check what a file holds, as TOML or JSON gives it.

        Raises:
            ConfigurationError: what is missing, unknown or makes no sense.
        """
        table = _Table(values, "", _TOP)
        services = {
            name: _service(name, _Table(facts, f"services.{name}.", _SERVICE))
            for name, facts in table.tables("services").items()
        }
        _vet_services(services)
        longest = max((service.timeout_seconds for service in services.values()), default=0.0)
        visibility = table.seconds("visibility_timeout_seconds", max(600.0, 2 * longest + 60))
        if visibility <= longest:
            raise ConfigurationError(
                f"visibility_timeout_seconds: expected more than the longest timeout_seconds of a service, "
                f"{longest:g}: a call that is still under way would be made again; got {visibility:g}"
            )
        facts = table.tables("callbacks", flat=True)
        return cls(
            storage=table.text("storage"),
            broker=table.text("broker"),
            backend=table.text("backend", "") or None,
            store=_store_url(table.text("store")),
            queue=table.text("queue", "mediator"),
            visibility_timeout_seconds=visibility,
            largest_request_bytes=table.whole("largest_request_bytes", 16 << 20),
            largest_response_bytes=table.whole("largest_response_bytes", 64 << 20),
            services=services,
            callbacks=_callbacks(_Table(facts, "callbacks.", _CALLBACKS)),
        )


def _of_file(file: str | Path | None) -> dict[str, Any]:
    path = Path(file or FILE)
    if file is None and not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"expected the mediator's settings in {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from None


def _of_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG":
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in _TOP:
            nearest = get_close_matches(name, _TOP, n=1)
            hint = f"; did you mean {PREFIX}{nearest[0].upper()}?" if nearest else ""
            raise ConfigurationError(f"{variable}: there is no such setting{hint}")
        if name in {"services", "callbacks"}:
            try:
                found[name] = json.loads(text)
            except ValueError:
                raise ConfigurationError(f"{variable}: expected a JSON object") from None
        elif name.endswith(("_seconds", "_bytes")):
            try:
                number = float(text)
            except ValueError:
                raise ConfigurationError(f"{variable}: expected a number; got {text!r}") from None
            found[name] = int(number) if number.is_integer() else number
        else:
            found[name] = text
    return found


class _Table:
    """A table of settings, read one by one; what is unknown is an error at once."""

    def __init__(self, values: object, where: str, known: list[str]) -> None:
        self._where = where
        if not isinstance(values, Mapping):
            raise ConfigurationError(f"{where.rstrip('.')}: expected a table; got {_kind(values)}")
        self._values: Mapping[str, Any] = values
        for name in values:
            if name not in known:
                nearest = get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(known)}"
                raise ConfigurationError(f"{where}{name}: there is no such setting{hint}")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def error(self, name: str, told: str) -> ConfigurationError:
        return ConfigurationError(f"{self._where}{name}: {told}")

    def any(self, name: str) -> Any:
        return self._values.get(name)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name, default)
        if value is None:
            where = f", in {FILE}, in the file that {PREFIX}CONFIG names, or in {PREFIX}{name.upper()}"
            raise self.error(name, f"expected it to be set{'' if self._where else where}")
        if not isinstance(value, str) or (default is None and not value):
            raise self.error(name, f"expected a text; got {_kind(value)}")
        return value

    def seconds(self, name: str, default: float) -> float:
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.error(name, f"expected seconds above 0; got {value!r}")
        return float(value)

    def whole(self, name: str, default: int) -> int:
        value = self._values.get(name, default)
        if type(value) is not int or value < 1:
            raise self.error(name, f"expected a whole number above 0; got {value!r}")
        return value

    def texts(self, name: str) -> list[str]:
        value = self._values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.error(name, f"expected a list of texts; got {_kind(value)}")
        return value

    def tables(self, name: str, *, flat: bool = False) -> Mapping[str, Any]:
        value = self._values.get(name, {})
        if not isinstance(value, Mapping):
            told = f"expected a table [{name}]" if flat else f"expected tables [{name}.NAME]"
            raise self.error(name, f"{told}; got {_kind(value)}")
        return value

    def fields(self, name: str) -> dict[str, str]:
        """Header fields, names in lower case."""
        found = {}
        for field_name, value in self.tables(name, flat=True).items():
            if why := field_fault(field_name, value):
                raise self.error(f"{name}.{field_name}", why)
            found[field_name.lower()] = value
        return found

    def secrets(self, name: str) -> dict[str, Secret]:
        try:
            return {field_name: Secret(text) for field_name, text in self.fields(name).items()}
        except ConfigurationError as error:
            if str(error).startswith(self._where + name):
                raise
            raise self.error(name, str(error)) from None

    def limits(self, name: str) -> tuple[Limit, ...]:
        try:
            limits = parse_limits(self.texts(name))
        except ConfigurationError as error:
            raise self.error(name, str(error)) from None
        for limit in limits:
            if limit.meter in OPTIONS:
                raise self.error(name, f"{limit.meter!r} cannot name a meter")
        return limits


def _kind(value: object) -> str:
    """What came, without showing what may be a secret."""
    return "nothing" if value in (None, "") else f"a {type(value).__name__}"


def field_fault(name: object, value: object) -> str | None:
    """Why that is no header field of a request's own; None if it is."""
    if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
        return "expected the name of a header field"
    if name.lower() in _FRAMING:
        return "it belongs to the connection and cannot be set"
    if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
        return "expected a text of printable ASCII"
    return None


def _service(name: str, table: _Table) -> Service:
    if not _SERVICE_NAME.fullmatch(name) or name.lower() in {"http", "https"}:
        raise ConfigurationError(
            f"services.{name}: expected a name of letters, digits, '_' and '-' that starts with a letter and "
            "is neither http nor https"
        )
    try:
        endpoint = read_url(table.text("endpoint"), prefix=True)
    except ConfigurationError as error:
        raise table.error("endpoint", str(error)) from None
    own = table.limits("limits")
    preset, its_limits = _preset(table, own)
    limits = (*its_limits, *own)
    if not limits:
        raise table.error("limits", 'expected limits, such as ["requests=500/min"], or a preset with limits')
    names = [limit.name for limit in limits]
    if len(set(names)) < len(names):
        raise table.error("limits", f"expected limits of different names; got {', '.join(names)}")
    cost = table.tables("cost", flat=True)
    meters = {limit.meter for limit in limits}
    for meter, units in cost.items():
        if meter not in meters or type(units) is not int or units < 0:
            known = ", ".join(sorted(meters))
            raise table.error("cost", f"expected whole units of {known}; got {meter}={units!r}")
    headers, secret_headers = table.fields("headers"), table.secrets("secret_headers")
    idempotency_header = table.text("idempotency_header", "idempotency-key").lower()
    if idempotency_header and (why := field_fault(idempotency_header, "")):
        raise table.error("idempotency_header", why)
    twice = sorted(headers.keys() & secret_headers.keys()) + sorted(
        {idempotency_header} & (headers.keys() | secret_headers.keys())
    )
    if twice:
        raise table.error("headers", f"{twice[0]} is set twice")
    return Service(
        name=name,
        endpoint=endpoint,
        limits=limits,
        preset=preset,
        key=table.text("key", name) or name,
        headers=headers,
        secret_headers=secret_headers,
        timeout_seconds=table.seconds("timeout_seconds", 120.0),
        attempts=table.whole("attempts", 6),
        idempotency_header=idempotency_header,
        cost=dict(cost),
        resets=_resets(table, preset),
    )


def _resets(table: _Table, preset: Preset | None) -> Resets | None:
    """The dialect that is named, else the preset's, if it has one."""
    usual = preset.name if preset is not None and preset.name in PROVIDERS else ""
    names = ("headers_dialect", "token_header", "requests_header")
    dialect, token_header, requests_header = (
        table.text(name, usual if name == "headers_dialect" else "") or None for name in names
    )
    try:
        return resets_of(dialect, token_header, requests_header)
    except ConfigurationError as error:
        raise table.error("headers_dialect", str(error)) from None


def _preset(table: _Table, own: tuple[Limit, ...]) -> tuple[Preset | None, tuple[Limit, ...]]:
    """The preset, and those of its limits that are in force.

    A name alone means its costs for the limits that stand beside it; a table, such as ``{name = "openai",
    rpm = 500, tpm = 200_000}``, means its limits, too.
    """
    told = table.any("preset")
    if told is None:
        return None, ()
    options = dict(told) if isinstance(told, Mapping) else {}
    name = options.pop("name", None) if isinstance(told, Mapping) else told
    module = None
    if isinstance(name, str) and name.isidentifier():
        try:
            module = import_module(f"headgate.providers.{name}")
        except ModuleNotFoundError:
            module = None
    make = getattr(module, "limits", None)
    if make is None:
        raise table.error("preset", f"expected the name of a provider, such as 'openai'; got {name!r}")
    brings_limits = bool(options)
    if not brings_limits:
        tokens = [limit for limit in own if limit.meter == "tokens"]
        if not tokens:
            raise table.error(
                "preset", "expected a limit on tokens beside it, or {name = …, rpm = …, tpm = …}"
            )
        least = min(tokens, key=lambda limit: limit.amount)
        options = {"tpm": least.amount, "charge": least.charge}
    try:
        preset: Preset = make(**options)
    except (ConfigurationError, TypeError) as error:
        raise table.error("preset", str(error)) from None
    return preset, tuple(preset) if brings_limits else ()


def _vet_services(services: Mapping[str, Service]) -> None:
    """Two of one prefix could not be told apart; two of one budget have to agree on it."""
    by_prefix: dict[Url, str] = {}
    by_key: dict[str, Service] = {}
    for name, service in services.items():
        prefix = Url(
            service.endpoint.scheme,
            service.endpoint.host,
            service.endpoint.port,
            service.endpoint.path.rstrip("/"),
        )
        if prefix in by_prefix:
            raise ConfigurationError(
                f"services.{name}.endpoint: {service.endpoint.shown} is that of {by_prefix[prefix]!r}, too"
            )
        by_prefix[prefix] = name
        other = by_key.setdefault(service.key, service)
        if other.limits != service.limits:
            raise ConfigurationError(
                f"services.{name}.key: {service.key!r} is the budget of {other.name!r}, too, which has other "
                "limits"
            )


def _callbacks(table: _Table) -> Callbacks:
    try:
        allow = tuple(read_url(text, prefix=True) for text in table.texts("allow"))
    except ConfigurationError as error:
        raise table.error("allow", str(error)) from None
    secret_headers = table.secrets("secret_headers")
    if secret_headers and not allow:
        raise table.error(
            "secret_headers", "expected callbacks.allow beside it: without, anybody could be sent the secret"
        )
    return Callbacks(
        allow=allow,
        limits=table.limits("limits") or parse_limits(CALLBACK_LIMITS),
        attempts=table.whole("attempts", 20),
        give_up_seconds=table.seconds("give_up_seconds", 86_400.0),
        timeout_seconds=table.seconds("timeout_seconds", 10.0),
        secret_headers=secret_headers,
    )


def _store_url(url: str) -> str:
    if url.partition(":")[0] == "memory":
        raise ConfigurationError(
            "store: expected one that all workers reach, sqlite:///… or redis://…; got memory://"
        )
    return url
