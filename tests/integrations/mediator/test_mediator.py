"""The mediator as it is run: real workers, brokers, stores, storage, and servers that judge them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from headgate.integrations.celery.mediator.steps import LONGEST_MESSAGE
from headgate.integrations.celery.mediator.submit import State
from headgate.integrations.celery.mediator.worker import CALL, CALL_BACK
from headgate.parking import lot_of
from headgate.simulator import SimulatedServer
from headgate.stores.base import open_store
from tests.integrations.mediator.place import ROOT, Place, wait_until, worker
from tests.integrations.mediator.receiver import Receiver
from tests.run.servers import Ledger, ledger_server
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.slow

KEY = "sk-secret-of-the-tests"
Build = Callable[..., Place]


@pytest.fixture
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Build]:
    """Makes a place on a Redis of its own, with RabbitMQ and S3 instead of it and of files if asked for."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())

        def make(services: Any, callbacks: Any, *, rabbitmq: bool = False, s3: bool = False) -> Place:
            told = {
                "storage": f"file://{tmp_path}/objects",
                "broker": f"redis+socket://{redis.url.removeprefix('unix://')}",
                "store": redis.url,
                "queue": f"mediator-{uuid4()}",
                "services": services,
                "callbacks": callbacks,
            }
            environment = {"KEY": KEY, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
            if rabbitmq:
                broker: RabbitMQServer = request.getfixturevalue("rabbitmq")
                told["broker"] = broker.url
            if s3:
                server: S3Server = request.getfixturevalue("s3_server")
                bucket = f"calls-{uuid4()}"
                server.create_bucket(bucket)
                environment |= server.environment
                monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
                for name, value in server.environment.items():
                    monkeypatch.setenv(name, value)
                told["storage"] = f"s3://{bucket}/some/where"
            place = Place(tmp_path, told, environment)
            stack.callback(place.close)
            return place

        yield make


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Ledger]:
    with ledger_server(tmp_path) as server:
        yield server


def fast(url: str, **more: Any) -> dict[str, Any]:
    """A service whose limits are in nobody's way."""
    return {"endpoint": url, "limits": ["requests=500/s:burst=500:start=full"], "attempts": 2, **more}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["redis, files", "rabbitmq, s3"])
def test_every_task_has_one_response_and_is_called_back(build: Build, api: Ledger, elsewhere: bool) -> None:
    limits = ["requests=40/s:burst=4", "tokens=4000/s:burst=400"]
    with SimulatedServer.in_thread(limits, latency="30ms", require_key=KEY) as sim, Receiver() as receiver:
        services = {
            "llm": {
                "endpoint": f"{sim.url}/v1",
                "limits": limits,
                "preset": "openai",
                "secret_headers": {"authorization": "Bearer ${KEY}"},
            },
            "api": fast(api.url),
        }
        place = build(services, {"allow": [receiver.url]}, rabbitmq=elsewhere, s3=elsewhere)
        back = f"{receiver.url}/done"
        chat = {"model": "small", "max_tokens": 16}
        good = [
            {
                "endpoint": "llm:/chat/completions",
                "payload": {**chat, "messages": [{"role": "user", "content": f"Question {number}"}]},
                "callback": back,
                "metadata": {"number": number},
            }
            for number in range(60)
        ]
        bad: dict[str, dict[str, Any]] = {
            "their-mistake": {"endpoint": "api:/x", "payload": {"do": [{"status": 400, "json": {"a": 1}}]}},
            "never-fits": {"endpoint": "llm:/x", "payload": {**chat, "max_tokens": 5000, "prompt": "x"}},
            "gives-up": {"endpoint": "api:/x", "payload": {"do": [{"status": 500}]}},
            "cut-off": {"endpoint": "api:/x", "payload": {"do": [{"how": "cut"}]}},
            "no-json": {"endpoint": "api:/x", "payload": {"do": [{"text": "{"}]}},
            "no-credit": {
                "endpoint": "api:/x",
                "payload": {"do": [{"status": 429, "json": {"error": {"code": "insufficient_quota"}}}]},
            },
        }
        broken: dict[str, dict[str, Any]] = {
            "no-service": {"endpoint": "https://elsewhere.example/"},
            "metadata": {"endpoint": "http://169.254.169.254/latest/meta-data"},
            "unknown-field": {"endpoint": "api:/x", "pyload": 1},
            "their-key": {"endpoint": "llm:/x", "headers": {"Authorization": "Bearer mine"}},
        }
        with worker(place):
            ids = [place.submit(each).task_id for each in good]
            for name, each in bad.items():
                place.submit({**each, "callback": back}, name)
            for name, each in broken.items():  # as some other program puts them there
                data = json.dumps({**each, "callback": back}).encode()
                assert place.storage.create(f"{name}.request.json", data)
                place.send(CALL, name)
            place.storage.create("no-object.request.json", b"{")
            place.send(CALL, "no-object")
            place.send(CALL, "no-request")
            all_ids = {*ids, *bad, *broken}
            wait_until(lambda: all_ids <= receiver.called().keys() and place.response("no-request"))

            responses = {name: place.response(name) for name in (*all_ids, "no-request", "no-object")}
            stats = sim.stats()
            assert (stats["accepted"], stats["refused"]) == (60, 0), "each once, and none too early"
            for number, name in enumerate(ids):
                found = responses[name]
                assert found["ok"], found
                assert (found["service"], found["status"], found["attempts"]) == ("llm", 200, 1)
                assert found["metadata"] == {"number": number}
                assert found["body"]["choices"]
                assert "x-ratelimit-limit-requests" in found["headers"]
            assert {
                name: (responses[name]["error"]["kind"], responses[name]["attempts"])
                for name in responses.keys() - set(ids)
            } == {
                "their-mistake": ("caller", 1),
                "never-fits": ("never_fits", 0),
                "gives-up": ("overloaded", 2),
                "cut-off": ("transport", 2),
                "no-json": ("malformed", 2),
                "no-credit": ("money_gone", 1),
                "no-service": ("invalid_request", 0),
                "metadata": ("invalid_request", 0),
                "unknown-field": ("invalid_request", 0),
                "their-key": ("invalid_request", 0),
                "no-request": ("no_request", 0),
                "no-object": ("invalid_request", 0),
            }
            assert responses["their-mistake"]["body"] == {"a": 1}
            assert responses["no-json"]["text"] == "{"

            # What has its response is not paid for again.
            paid = sim.stats()["accepted"], api.count()
            assert {place.submit(each).state for each in good} == {State.DONE}
            before = receiver.called()
            for name in (*ids[:5], *bad):
                place.send(CALL, name)  # called back once more
            wait_until(lambda: (receiver.called() - before).total() >= 5 + len(bad))
            assert (sim.stats()["accepted"], api.count()) == paid

            # That there was no request is no answer to one that has come since.
            assert place.submit({"endpoint": "api:/x"}, "no-request").state is State.SENT
            wait_until(lambda: place.response("no-request")["ok"])
        log = (place.folder / "one.log").read_text(errors="replace")
        assert "Traceback" not in log, log
        assert KEY not in log
        assert all(call.headers["headgate-task-id"] == call.task_id for call in receiver.calls)


def test_what_has_failed_is_made_again_on_demand(build: Build, api: Ledger) -> None:
    with Receiver() as receiver:
        place = build({"api": fast(api.url)}, {"allow": [receiver.url]})
        recovers = {"payload": {"do": [{"status": 500}, {"status": 500}, {"status": 400}, {}]}}
        request = {"endpoint": "api:/x", "callback": receiver.url, **recovers}

        def again() -> State:
            return place.submitter.submit(request, "t", retry_failed=True).state

        def called_back(times: int) -> None:
            wait_until(lambda: len(receiver.calls) == times)

        with worker(place):
            assert again() is State.SENT
            for number, kind in enumerate(["overloaded", "caller"], 1):
                called_back(number)
                assert place.response("t")["error"]["kind"] == kind
                assert place.submit(request, "t").state is State.DONE, "nobody has asked for it"
                assert again() is State.SENT_AGAIN
            called_back(3)
            assert place.response("t")["ok"]
            assert again() is State.DONE
            # Nor is a success replaced by a message that comes late.
            place.submitter.app.send_task(CALL, args=["t"], kwargs={"retry_failed": True})
            called_back(4)
        assert api.count() == 4


def test_secrets_are_sent_and_stored_nowhere(build: Build, api: Ledger) -> None:
    with Receiver() as receiver:
        secret = {"authorization": "Bearer ${KEY}"}
        place = build(
            {"api": fast(api.url, secret_headers=secret)},
            {"allow": [receiver.url], "secret_headers": {"x-hook": "${KEY}"}},
        )
        with worker(place):
            request = {"endpoint": "api:/x", "payload": {"do": [{"how": "echo"}]}, "callback": receiver.url}
            task_id = place.submit(request).task_id
            wait_until(lambda: receiver.calls)
            # An error that quotes the key where its message is cut, and text that is none.
            message = "." * (LONGEST_MESSAGE - 5) + f"\\u{ord(KEY[0]):04x}{KEY[1:]} \\ud800"
            answer = {"status": 400, "text": f'{{"error": {{"message": "{message}"}}}}'}
            place.submit({"endpoint": "api:/x", "payload": {"do": [answer]}}, "quotes")
            wait_until(lambda: place.response("quotes"))
        assert receiver.calls[0].headers["x-hook"] == KEY
        quotes = place.response("quotes")
        assert (quotes["error"]["kind"], quotes["attempts"]) == ("caller", 1)
        assert quotes["error"]["message"] == "." * (LONGEST_MESSAGE - 5) + "*** \ud800"
        assert KEY[1:] not in json.dumps(quotes)
        response = place.response(task_id)
        assert "authorization: Bearer ***" in response["body"]["head"], "it was sent, and echoed"
        assert f"idempotency-key: {task_id}" in response["body"]["head"]
        for path in place.folder.rglob("*"):
            if path.is_file() and path.name != "server.ledger":
                assert KEY.encode() not in path.read_bytes(), path


def test_a_throttle_spends_no_attempt(build: Build, api: Ledger) -> None:
    with Receiver() as receiver:
        place = build({"api": fast(api.url, attempts=1)}, {"allow": [receiver.url]})
        slow_down = {"status": 429, "headers": {"retry-after": "1"}}
        with worker(place):
            payload = {"do": [slow_down, slow_down, {"json": {"at": "last"}}]}
            task_id = place.submit({"endpoint": "api:/x", "payload": payload}).task_id
            wait_until(lambda: place.response(task_id))
        response = place.response(task_id)
        assert (response["body"], response["attempts"]) == ({"at": "last"}, 1)
        at = [entry.at for entry in api.received()]
        assert len(at) == 3
        assert all(later - earlier >= 1 for earlier, later in pairwise(at))
        assert not receiver.calls, "nobody asked for it"


def test_what_was_let_out_and_needs_no_permit_does_not_come_again(build: Build, api: Ledger) -> None:
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        gone = stack.enter_context(Receiver(lambda call, count: (204, {"connection": "close"}, b"")))
        services = {
            "api": {"endpoint": api.url, "limits": ["requests=5/s:burst=1"]},
            "gone": {"endpoint": gone.url, "limits": ["requests=5/s:burst=1"], "attempts": 1},
        }
        place = build(services, {"allow": [receiver.url]})
        store: Any = open_store(place.settings.store)
        stack.callback(store.close)
        lot = lot_of(store)
        request = {"endpoint": "api:/x", "payload": {"do": [{"after": 0.5}]}, "callback": receiver.url}
        place.submit(request, "copied")
        for _ in range(6):
            place.send(CALL, "copied")
        ids = [place.submit({"endpoint": "gone:/x", "metadata": each}).task_id for each in range(6)]
        stack.enter_context(worker(place))
        wait_until(lambda: place.response("copied") and lot.peek("gone").waiting)
        gone._server.server_close()  # those that are let out from now on cannot even be sent
        wait_until(lambda: all(map(place.response, ids)))
        assert {place.response(task_id)["ok"] for task_id in ids} == {True, False}
        wait_until(lambda: not any(lot.peek(key).waiting or lot.peek(key).out for key in services), 20)
        assert receiver.called()["copied"] <= 7


def test_a_callback_is_tried_again_alone(build: Build, api: Ledger) -> None:
    script = {
        "/takes-the-third": [500, 408, 204],
        "/gone": [410, 204],
        "/not-there": [404],
        "/moved": [307],
        "/never": [500],
    }

    def answer(call: Any, count: int) -> Any:
        statuses = script[call.path]
        return statuses[min(count, len(statuses) - 1)], {}, b""

    with Receiver(answer) as receiver:
        place = build({"api": fast(api.url)}, {"allow": [receiver.url], "attempts": 3})
        with worker(place):
            ids = {}
            for path in script:
                request = {"endpoint": "api:/x", "callback": receiver.url + path, "metadata": path}
                ids[path] = place.submit(request).task_id
            elsewhere = {"endpoint": "api:/x", "callback": "http://127.0.0.1:1/", "metadata": "not allowed"}
            data = json.dumps(elsewhere).encode()
            place.storage.create("elsewhere.request.json", data)
            place.send(CALL, "elsewhere")
            kinds = [ids["/gone"], ids["/not-there"], ids["/moved"], ids["/never"], "elsewhere"]
            wait_until(
                lambda: all(map(place.given_up, kinds)) and receiver.called()[ids["/takes-the-third"]] == 3
            )
            told = {path: place.given_up(ids[path]) for path in ("/gone", "/never")}
            place.send(CALL_BACK, ids["/gone"])
            wait_until(lambda: place.given_up(ids["/gone"])["ok"])
        called = receiver.called()
        assert {path: called[task_id] for path, task_id in ids.items()} == {
            "/takes-the-third": 3, "/gone": 2, "/not-there": 1, "/moved": 1, "/never": 3,
        }  # fmt: skip
        assert place.given_up(ids["/takes-the-third"]) is None
        assert place.given_up(ids["/gone"])["error"] is None
        assert told["/gone"]["error"]["message"] == "HTTP 410"
        assert told["/never"]["error"]["message"] == "HTTP 500, 3 attempts"
        assert told["/never"]["attempts"] == 3
        assert "not among what callbacks.allow allows" in place.given_up("elsewhere")["error"]["message"]
        assert all(place.response(task_id)["ok"] for task_id in (*ids.values(), "elsewhere"))
        assert api.count() == len(script) + 1, "each was paid for once"


def test_a_host_that_is_down_is_left_alone_by_all(build: Build, api: Ledger) -> None:
    up_at = [float("inf")]

    def answer(call: Any, count: int) -> Any:
        return (204 if time.monotonic() >= up_at[0] else 503), {}, b""

    with socket.socket() as reserved, Receiver(answer) as limping, Receiver() as well:
        reserved.bind(("127.0.0.1", 0))  # nobody listens there
        dead = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        place = build({"api": fast(api.url)}, {"allow": [limping.url, well.url, dead], "give_up_seconds": 2})
        with worker(place):
            for number in range(30):
                for name, url in [("limping", limping.url), ("well", well.url)]:
                    place.submit({"endpoint": "api:/x", "callback": url}, f"{name}-{number}")
            place.submit({"endpoint": "api:/x", "callback": dead}, "dead")
            wait_until(lambda: len(well.called()) == 30 and api.count() == 61)
            wait_until(lambda: place.given_up("dead"))
            tries = len(limping.calls)
            up_at[0] = time.monotonic()
            wait_until(lambda: len(limping.called()) == 30)
        log = (place.folder / "one.log").read_text(errors="replace")
        assert f"{limping.url.removeprefix('http://')} cannot be called back now: HTTP 503" in log
        assert tries < 25, "thirty wait, and what is sent are probes, further and further apart"
        assert api.count() == 61, "each was paid for once"
        assert "Connection refused, for 2 s" in place.given_up("dead")["error"]["message"]
        assert place.response("dead")["ok"]


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_in_every_pool(build: Build, api: Ledger, pool: str) -> None:
    slots = "100" if pool == "gevent" else "4"  # see docs/celery.md
    with Receiver() as receiver:
        limits = ["requests=100/s:burst=4"]
        place = build({"api": {"endpoint": api.url, "limits": limits}}, {"allow": [receiver.url]})
        with worker(place, "one", "-P", pool, "-c", slots):
            back = receiver.url
            ids = {
                place.submit({"endpoint": "api:/x", "payload": number, "callback": back}).task_id
                for number in range(50)
            }
            wait_until(lambda: ids <= receiver.called().keys())
        assert all(place.response(task_id)["ok"] for task_id in ids)
        assert api.count() == 50


def test_a_worker_without_its_secret_does_not_start(build: Build, api: Ledger) -> None:
    place = build({"api": fast(api.url, secret_headers={"x-key": "${NOT_SET_ANYWHERE}"})}, {})
    told = "headgate mediator: expected the environment variable NOT_SET_ANYWHERE"
    with pytest.raises(AssertionError, match=told), worker(place):
        pass


def test_calling_back_by_hand_and_nonsense_as_an_id(build: Build, api: Ledger) -> None:
    with Receiver() as receiver:
        place = build({"api": fast(api.url)}, {"allow": [receiver.url]})
        with worker(place):
            for nonsense in ("../../etc/passwd", "", 7, None, ["a"]):
                place.send(CALL, nonsense)
                place.send(CALL_BACK, nonsense)
            task_id = place.submit({"endpoint": "api:/x", "callback": receiver.url}).task_id
            wait_until(lambda: receiver.called()[task_id] == 1)
            place.send(CALL_BACK, task_id)
            wait_until(lambda: receiver.called()[task_id] == 2)
        log = (place.folder / "one.log").read_text(errors="replace")
        assert log.count("no id that could name") == 10
        assert "Traceback" not in log
        names = {path.name for path in (place.folder / "objects").iterdir()}
        assert names == {f"{task_id}.request.json", f"{task_id}.response.json"}
