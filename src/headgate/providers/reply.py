"""HTTP answers in whatever a user's function returned or raised, told by shape alone.

No HTTP library is known here, and none is imported: an answer is what has a status and header fields. Nothing
is asked of the network: a body is taken only where it lies in the object already. Mocks, proxies and data
frames answer to any name, so only attributes that are really there are looked at.

Shapes: openai and anthropic ``APIStatusError``, ``with_raw_response``; requests, httpx, aiohttp, urllib3 and
urllib, their responses and errors; botocore's ``ClientError`` ("Error handling", Boto3 guide, read November
2026); google.api_core's errors, which carry a ``code`` and often no fields.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from headgate.core.retry import ErrorClass
from headgate.errors import ConfigurationError, CostExceedsLimit, Throttled
from headgate.providers.answers import Answer, read_answer
from headgate.providers.resets import Resets

LARGEST_BODY = 1 << 20
"""Bytes that are parsed, some 10 ms; what is larger is the user's data, and no error is as large."""
MOST_FIELDS = 256
MOST_LINKS = 8
"""Errors that are looked at: the one that was raised and those behind it."""
LONGEST_MESSAGE = 500

PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset}
)
"""What has nothing to do with an answer."""

_STATUS_NAMES = ("status_code", "status", "http_status", "code")
_BODY_NAMES = ("_content", "_body", "content", "body", "data", "text")
"""Where a body that was read lies in a response; the first two are private to requests and httpx, and to
aiohttp, urllib3 and tornado, whose public names would read the stream."""
_ERROR_BODY_NAMES = ("body", "json_body", "data", "details")

TRANSPORT_NAMES = frozenset(
    "APIConnectionError APITimeoutError "
    "ConnectError ConnectTimeout ReadTimeout WriteTimeout PoolTimeout TimeoutException TransportError "
    "NetworkError ReadError WriteError CloseError RemoteProtocolError ProxyError "
    "ServerDisconnectedError ServerTimeoutError ClientConnectionError ClientConnectorError ClientOSError "
    "ClientPayloadError "
    "ConnectionError Timeout ChunkedEncodingError SSLError "
    "ConnectTimeoutError ReadTimeoutError NewConnectionError ProtocolError MaxRetryError "
    "EndpointConnectionError ConnectionClosedError HTTPClientError "
    "URLError RemoteDisconnected IncompleteRead BadStatusLine gaierror".split()
)
"""Classes that mean that no answer came: of openai, httpx, aiohttp, requests, urllib3, botocore, Python."""
CALLER_NAMES = frozenset(
    "InvalidURL UnsupportedProtocol LocalProtocolError MissingSchema InvalidSchema InvalidHeader "
    "NonHttpUrlClientError ParamValidationError NoCredentialsError NoRegionError".split()
)
"""Classes that mean that there was nothing to be sent: the same call will fail again."""
MISTAKES = (TypeError, NameError, AttributeError, SyntaxError, ImportError, NotImplementedError)
"""Faults of the program. Not ``AssertionError``, ``KeyError``, ``IndexError`` and ``ValueError``: those are
how programs say that an answer is not as it should be, and the next one may be."""

_NETWORK_ERRNOS = frozenset(
    {
        errno.EADDRNOTAVAIL, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET,
        errno.ENETUNREACH, errno.ENOBUFS, errno.ENOTCONN,
    }
)  # fmt: skip

_SECRET = re.compile(
    r"""(://)[^/\s@]+(?=@)
    | (\b[\w-]{0,30}(?:key|token|secret|password|signature|sig)=)[^\s&"']+
    | (\b(?:authorization|(?:x-)?api[-_]key)["']?\s*:\s*["']?(?:(?:Bearer|Basic)\s+)?)[^\s"',}]+
    | (\bBearer\s+)[^\s"',}]{8,}
    | \b(?:sk|pk|rk|gsk|hf|gh[opsu]|xox[abprs])[-_][\w*-]{8,}
    | \b(?:AIza|AKIA|ASIA)[\w-]{12,}""",
    re.IGNORECASE | re.VERBOSE,
)
"""What looks like a key: in a URL, in a field, or by its prefix."""
_PRIVATE_FIELDS = ("location", "set-cookie", "www-authenticate")


class Reply(NamedTuple):
    """An HTTP answer.

    ``fields`` has lower-case names; ``body`` is the parsed JSON, None where there is none, or none was read.
    """

    status: int
    fields: dict[str, str]
    body: Any


def read_reply(thing: object) -> Reply | None:
    """The HTTP answer in what a function returned or raised; None if there is none.

    Never raises, and never reads a stream. Of an error that carries no answer itself, those are asked that it
    came from: its cause, the members of a group, its context. So call functions outside of any ``except``
    block: within one, their errors have the error that is being handled as their context.
    """
    try:
        kind = type(thing)
        if kind in PLAIN:
            return None
        if issubclass(kind, BaseException):
            return next((found for link in _links(thing) if (found := _of_error(link))), None)
        return _of_value(thing)
    except Exception:  # stranger than any answer
        return None


def read_failure(
    error: BaseException,
    wall_us: int,
    meters: Collection[str],
    resets: Resets | None = None,
    handled: BaseException | None = None,
) -> Answer:
    """What an error that a function raised says, in the words of :mod:`headgate.providers.answers`.

    1. headgate's own: a cost that never fits, a configuration that makes no sense, a throttle that lasted.
    2. With an HTTP answer, what the answer says. An error about an answer that was no refusal: malformed.
    3. A mistake in the program (:data:`MISTAKES`), unless it was raised *from* another error; an exit, a
       cancellation: the caller's, not worth another attempt.
    4. No connection, no answer in time: transport.
    5. Anything else: malformed, worth another attempt.

    Args:
        error: what was raised. See :func:`read_reply` for errors that wrap others.
        wall_us: our wall clock.
        meters: the meters to look for in ``x-ratelimit-*`` fields.
        resets: as for :func:`~headgate.providers.answers.read_answer`.
        handled: the error that was being handled when the function was called, so that what the function
            raised may have it for its context; it, and what is behind it, is not asked.

    Returns:
        An answer whose ``status`` is None if no answer came. ``message`` is the error's text, without what
        looks like a key, at most 500 characters; ``code`` the API's code, else the name of the error's class.
    """
    if not isinstance(error, Exception):
        return _without_answer(ErrorClass.CALLER, error)
    links = [error] if _is_mistake(error) else list(_links(error, handled))
    for link in links:
        own = _class_of_ours(link)
        if own is not None:
            return _without_answer(own, error)
        reply = _safely_of_error(link)
        if reply is not None:
            return _with_answer(error, reply, wall_us, meters, resets)
    if isinstance(error, MISTAKES):
        return _without_answer(ErrorClass.CALLER, error)
    classes = (_class_without_answer(link) for link in links)
    return _without_answer(next(filter(None, classes), ErrorClass.MALFORMED), error)


def attribute(thing: object, name: str) -> Any:
    """An attribute that is really there, or None.

    Objects that make up attributes as they are asked (``__getattr__``) are not asked.
    """
    own = _own(thing)
    if name in own:
        return own[name]
    if _in_class(thing, name):
        return object.__getattribute__(thing, name)
    return None


def _own(thing: object) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return {}
    return found


def _in_class(thing: object, name: str) -> bool:
    return any(name in base.__dict__ for base in type(thing).__mro__)


# Values


def _of_value(thing: object) -> Reply | None:
    own = _own(thing)
    for name in ("http_response", "response"):  # an SDK's wrapper around the answer
        nested = own.get(name)
        if nested is not None and (found := _of_response(nested)):
            return found
    return _of_response(thing)


def _of_response(thing: object) -> Reply | None:
    """An object that has both a status and fields."""
    own = _own(thing)
    # First by names alone: a property may do anything, so it is asked only of what looks like an answer.
    if "headers" not in own and not _in_class(thing, "headers"):
        return None
    status = _status(thing)
    if not 100 <= status <= 599:
        return None
    fields = _fields(attribute(thing, "headers"))
    if fields is None:
        return None
    return Reply(status, fields, _body_in([own.get(name) for name in _BODY_NAMES]))


def _status(thing: object) -> int:
    """The first whole number under a name of a status; 0 if there is none."""
    for name in _STATUS_NAMES:
        value = attribute(thing, name)
        if issubclass(type(value), int) and type(value) is not bool:
            return int(value)
    return 0


def _fields(headers: Any) -> dict[str, str] | None:
    """Header fields with lower-case names; None if that is no mapping."""
    if not issubclass(type(headers), Mapping) and not _in_class(headers, "get_all"):  # an email.Message
        return None
    fields = {}
    for name, value in islice(headers.items(), MOST_FIELDS):
        key, text = _text(name), _text(value)
        if key is not None and text is not None:
            fields[key.lower()] = text
    return fields


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return str(value) if type(value) in (int, float) else None


def _body_in(candidates: Iterable[Any]) -> Any:
    """The first that is a body that was read, parsed; None if there is none."""
    for value in candidates:
        if type(value) in (dict, list):
            return value
        if type(value) in (bytes, str) and value:
            return _parse(value)
    return None


def _parse(text: bytes | str) -> Any:
    start = text[:16].lstrip()
    if len(text) > LARGEST_BODY or start[:1] not in ("{", "[", b"{", b"["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# Errors


def _links(error: Any, handled: BaseException | None = None) -> Iterator[BaseException]:
    """An error, and those behind it, nearest first, as far as ``handled``."""
    links, seen = [error], {id(error), id(handled)}
    for link in links:  # it grows on the way
        yield link
        members = link.exceptions[:MOST_LINKS] if isinstance(link, BaseExceptionGroup) else ()
        for behind in (link.__cause__, *members, link.__context__):
            if behind is not None and id(behind) not in seen and len(links) < MOST_LINKS:
                seen.add(id(behind))
                links.append(behind)


def _safely_of_error(error: BaseException) -> Reply | None:
    try:
        return _of_error(error)
    except Exception:  # stranger than any answer
        return None


def _of_error(error: BaseException) -> Reply | None:
    if not isinstance(error, Exception):
        return None  # the code of an exit is no status
    response = attribute(error, "response")
    if type(response) is dict:
        reply = _of_aws(response)
    else:
        reply = None if response is None else _of_response(response)
    if reply is None:
        status, fields = _status(error), _fields(attribute(error, "headers"))
        # Without fields a number is believed only if it is an error's.
        if not (400 if fields is None else 100) <= status <= 599:
            return None
        reply = Reply(status, fields or {}, None)
    if reply.body is None:
        reply = reply._replace(body=_error_body(error))
    return reply


def _of_aws(response: dict[str, Any]) -> Reply | None:
    about, error = response.get("ResponseMetadata"), response.get("Error")
    if not isinstance(about, dict):
        about = {}
    status = about.get("HTTPStatusCode")
    if type(status) is not int or not 100 <= status <= 599:
        if not isinstance(error, dict) or "Code" not in error:
            return None
        status = 400
    body = {name: value for name, value in response.items() if name != "ResponseMetadata"}
    return Reply(status, _fields(about.get("HTTPHeaders")) or {}, body)


def _error_body(error: BaseException) -> Any:
    """A body that an SDK has parsed; openai's is what stood under ``error``."""
    body = _body_in(attribute(error, name) for name in _ERROR_BODY_NAMES)
    if isinstance(body, dict) and "error" not in body and "message" in body:
        return {"error": body}
    return body


# Classes


def _is_mistake(error: BaseException) -> bool:
    """A mistake in the program while it handled another error says nothing about that one."""
    return isinstance(error, MISTAKES) and error.__cause__ is None


def _class_of_ours(error: BaseException) -> ErrorClass | None:
    if isinstance(error, CostExceedsLimit):
        return ErrorClass.NEVER_FITS
    if isinstance(error, ConfigurationError):
        return ErrorClass.CALLER
    return ErrorClass.THROTTLED if isinstance(error, Throttled) else None


def _class_without_answer(error: BaseException) -> ErrorClass | None:
    names = {base.__name__ for base in type(error).__mro__}
    if names & CALLER_NAMES:
        return ErrorClass.CALLER
    if isinstance(error, TimeoutError | ConnectionError) or names & TRANSPORT_NAMES:
        return ErrorClass.TRANSPORT
    if isinstance(error, OSError) and error.errno in _NETWORK_ERRNOS:
        return ErrorClass.TRANSPORT
    return None


def _with_answer(
    error: BaseException, reply: Reply, wall_us: int, meters: Collection[str], resets: Resets | None
) -> Answer:
    answer = read_answer(*reply, wall_us, meters, resets)
    private = [value for name in _PRIVATE_FIELDS if len(value := reply.fields.get(name, "")) > 8]
    return answer._replace(
        # It was raised, so it is of no use, whatever its status.
        error=ErrorClass.MALFORMED if answer.error is ErrorClass.OK else answer.error,
        message=_message(error, private),
        code=answer.code[:100] or type(error).__name__,
    )


def _without_answer(kind: ErrorClass, error: BaseException) -> Answer:
    return Answer(kind, _message(error), type(error).__name__, None, None, (), None)


def _message(error: BaseException, private: Iterable[str] = ()) -> str:
    """The error's text, or its class's name, without what looks like a key."""
    try:
        text = str(error)[: 4 * LONGEST_MESSAGE]
    except Exception:  # its text is broken, too
        text = ""
    for value in private:
        text = text.replace(value, "***")
    text = _SECRET.sub(lambda found: f"{''.join(filter(None, found.groups()))}***", text)
    return text[:LONGEST_MESSAGE] or type(error).__name__
