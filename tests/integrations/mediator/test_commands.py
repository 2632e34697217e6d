"""``headgate mediator submit`` and ``check``, and ``submit`` as a function."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from headgate.cli import main
from headgate.errors import InvalidRequest
from headgate.integrations.celery.mediator import Settings, submit
from headgate.integrations.celery.mediator.submit import State, Submitter, submitter_of
from tests.integrations.mediator.place import ROOT, wait_until
from tests.servers.redis import RedisServer

API = {"endpoint": "http://127.0.0.1:9/v1", "limits": ["requests=5/s"]}


class Desk:
    """A mediator without workers: what is submitted lies in storage and in the broker."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.folder, self.redis = folder, redis
        self.objects = folder / "objects"
        self.told: dict[str, Any] = {
            "storage": f"file://{self.objects}",
            "broker": f"redis+socket://{redis.url.removeprefix('unix://')}",
            "store": redis.url,
            "services": {"api": API},
        }

    @property
    def environment(self) -> dict[str, str]:
        texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in self.told.items()}
        return {f"HEADGATE_MEDIATOR_{name.upper()}": text for name, text in texts.items()}

    def command(self, *words: str, stdin: str | None = None) -> Result:
        """``headgate mediator WORDS``; whatever goes wrong, it shows no traceback."""
        ran = CliRunner().invoke(main, ["mediator", *words], env=self.environment, input=stdin)
        assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
        return ran

    def sent(self) -> list[str]:
        """The task ids in the broker, in their order."""
        from redis import Redis

        with Redis.from_url(self.redis.url) as client:
            raw: Any = client.lrange("mediator", 0, -1)
        messages = [json.loads(text) for text in raw]
        assert all(message["headers"]["task"] == "headgate.mediator.call" for message in messages)
        return [message["headers"]["id"] for message in reversed(messages)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with RedisServer() as redis:
        yield Desk(tmp_path, redis)


def lines(*requests: dict[str, Any]) -> str:
    return "".join(json.dumps(request) + "\n" for request in requests)


def test_a_file_is_submitted_and_again_costs_nothing(desk: Desk) -> None:
    file = desk.folder / "requests.jsonl"
    file.write_text(lines(*({"endpoint": "api:/x", "payload": number} for number in range(50))))
    ran = desk.command("submit", str(file))
    assert (ran.exit_code, ran.stderr) == (0, "50 sent\n")
    ids = ran.stdout.split()
    assert len(set(ids)) == 50
    assert sorted(desk.sent()) == sorted(ids)
    assert json.loads((desk.objects / f"{ids[7]}.request.json").read_bytes())["payload"] == 7

    for task_id in ids[:20]:
        (desk.objects / f"{task_id}.response.json").write_text("{}")
    again = desk.command("submit", str(file), "--quiet")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "20 already done, 30 sent again\n")
    assert len(desk.sent()) == 80


def test_what_has_failed_is_submitted_again_on_demand(desk: Desk) -> None:
    given = lines(*({"endpoint": "api:/x", "task_id": name} for name in ("good", "bad", "waits")))
    assert desk.command("submit", "-", stdin=given).exit_code == 0
    responses = {"good": {"error": None}, "bad": {"error": {"kind": "caller", "message": ""}}}
    for name, response in responses.items():
        (desk.objects / f"{name}.response.json").write_text(json.dumps(response))
    ran = desk.command("submit", "-", "--retry-failed", "--quiet", stdin=given)
    assert (ran.exit_code, ran.stderr) == (0, "1 already done, 2 sent again\n")
    assert sorted(desk.sent()[3:]) == ["bad", "waits"]


def test_files_of_one_request_lines_and_standard_input(desk: Desk) -> None:
    one = desk.folder / "one.json"
    told = {"endpoint": "api:/x", "payload": [1, 2], "task_id": "first"}
    one.write_text("\n" + json.dumps(told, indent=2))
    given = lines({"endpoint": "api:/x", "task_id": "second"}, {"endpoint": "api:/x", "task_id": "third"})
    ran = desk.command("submit", str(one), "-", stdin=given)
    assert (ran.exit_code, ran.stdout) == (0, "first\nsecond\nthird\n")
    assert json.loads((desk.objects / "first.request.json").read_bytes()) == {
        "endpoint": "api:/x",
        "payload": [1, 2],
    }


def test_mistakes_are_told_by_their_line_and_the_others_go(desk: Desk) -> None:
    file = desk.folder / "requests.jsonl"
    file.write_text(
        "{\n"
        + lines({"endpoint": "api:/x", "task_id": "good"})
        + "\n[]\n"
        + lines(
            {"endpoint": "https://elsewhere.example/"},
            {"endpoint": "api:/x", "callback": "http://127.0.0.1:22/"},
            {"endpoint": "api:/x", "task_id": "../bad"},
            {"endpoint": "api:/x", "task_id": "good", "payload": "another"},
            {"endpoint": "api:/x", "task_id": 7},
        )
    )
    ran = desk.command("submit", str(file))
    assert (ran.exit_code, ran.stdout) == (1, "good\n")
    told = ran.stderr.splitlines()
    for number, says in [
        (1, "that is no JSON"),
        (4, "expected a JSON object; got a list"),
        (5, "belongs to no service"),
        (6, "expected one of the ports"),
        (7, "task_id: expected 1 to 200 letters"),
        (8, "'good' is that of another request already"),
        (9, "task_id: expected"),
    ]:
        assert any(line.startswith(f"{file}:{number}: ") and says in line for line in told), (number, told)
    assert told[-1] == "7 failed, 1 sent"
    assert desk.sent() == ["good"]


def test_no_settings_no_file_and_no_broker(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    assert "there is no such setting" in told(desk, 2, "submit", "-", unknown="x")
    assert "No such file" in told(desk, 2, "submit", "nowhere.jsonl")
    desk.told["broker"] = "redis+socket:///nowhere/at/all"
    file = desk.folder / "requests.jsonl"
    file.write_text(lines({"endpoint": "api:/x"}))
    assert "the same command goes on from there" in told(desk, 3, "submit", str(file))
    desk.told["storage"] = "file:///proc/nowhere"
    assert "/proc/nowhere cannot be opened" in told(desk, 2, "submit", str(file))
    desk.told["storage"] = "file:///dev/null"
    assert "/dev/null" in told(desk, 2, "submit", str(file))


def told(desk: Desk, code: int, *words: str, **settings: Any) -> str:
    """What a command says that ends like that."""
    before, desk.told = desk.told, {**desk.told, **settings}
    ran = desk.command(*words)
    desk.told = before
    assert ran.exit_code == code, ran.output
    return ran.stderr


def test_ctrl_c_ends_it_and_the_same_command_goes_on(desk: Desk) -> None:
    command = [sys.executable, "-m", "headgate", "mediator", "submit", "-"]
    environment = {**os.environ, **desk.environment, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        for number in range(40):
            process.stdin.write(lines({"endpoint": "api:/x", "payload": number}))
        process.stdin.flush()
        wait_until(lambda: len(desk.sent()) >= 20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "stopped; the same command goes on from there" in err
    assert sorted(out.split()) == sorted(desk.sent()), "what was sent is told, and what is told was sent"


@pytest.mark.parametrize("told", [0, 3, 15])
def test_ctrl_c_between_two_lines_of_code_tells_nothing_twice(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, told: int
) -> None:
    echo, ids = click.echo, []

    def interrupted(text: str, **more: Any) -> None:
        echo(text, **more)
        if not more:
            ids.append(text)
            if len(ids) == told + 1:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(click, "echo", interrupted)
    given = lines(*({"endpoint": "api:/x", "payload": number} for number in range(60)))
    ran = desk.command("submit", "-", stdin=given)
    assert ran.exit_code == 130
    assert told < len(ids) < 60
    assert sorted(ids) == sorted(desk.sent())
    assert ran.stderr.startswith(f"{len(ids)} sent\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_check_uses_everything_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.told["backend"] = desk.told["broker"]
    ran = desk.command("check")
    assert ran.exit_code == 0, ran.output
    assert [line.split()[:2] for line in ran.stdout.splitlines()] == [
        ["ok", "storage"], ["ok", "store"], ["ok", "broker"], ["ok", "backend"], ["ok", "service"],
        ["ok", "callbacks"],
    ]  # fmt: skip
    assert desk.sent() == []

    secret = "hunter2-is-secret"
    monkeypatch.delenv("NOT_SET", raising=False)
    desk.told |= {
        "storage": "file:///proc/nowhere",
        "broker": f"amqp://me:{secret}@127.0.0.1:1//;amqp://me:{secret}@127.0.0.1:2//",
        "backend": f"redis://:{secret}@127.0.0.1:1/0",
        "store": f"redis://:{secret}@127.0.0.1:1/0",
        "services": {
            "api": {**API, "secret_headers": {"x-key": "${NOT_SET}"}},
            "far": {**API, "endpoint": "https://nobody.invalid"},
        },
        "callbacks": {"allow": ["https://nobody.invalid/"]},
    }
    ran = desk.command("check")
    assert ran.exit_code == 1
    found = ran.stdout.splitlines()
    assert len(found) == 7
    assert all(line.startswith("WRONG") for line in found), ran.stdout
    assert "expected the environment variable NOT_SET" in ran.stdout
    assert ran.stdout.count("nobody.invalid has no address") == 2
    assert secret not in ran.output


def test_submit_is_a_function(desk: Desk) -> None:
    settings = Settings.load(environment=desk.environment)
    request = {"endpoint": "api:/x", "payload": {"b": 1, "a": "ä"}}
    task_id = submit(request, settings=settings)
    assert submit({"payload": {"a": "ä", "b": 1}, "endpoint": "api:/x"}, settings=settings) == task_id
    assert submit(request, task_id="mine", settings=settings) == "mine"
    assert desk.sent() == [task_id, task_id, "mine"]
    with pytest.raises(InvalidRequest, match="is that of another request already"):
        submit({"endpoint": "api:/y"}, task_id="mine", settings=settings)
    # As another program may have written it.
    (desk.objects / "theirs.request.json").write_text(json.dumps(request, indent=4))
    assert submitter_of(settings).submit(request, "theirs").state is State.SENT_AGAIN
    (desk.objects / "mine.response.json").write_text("{}")
    assert submitter_of(settings).submit(request, "mine").state is State.DONE
    assert len(desk.sent()) == 4
    with pytest.raises(InvalidRequest, match="no infinite numbers"):
        submit({"endpoint": "api:/x", "payload": float("inf")}, settings=settings)
    with pytest.raises(InvalidRequest, match="what JSON can say"):
        submit({"endpoint": "api:/x", "payload": {1, 2}}, settings=settings)


def test_a_program_that_submits_needs_no_services_and_keeps_its_own_app(desk: Desk) -> None:
    from celery import Celery, current_app

    own = Celery("own")
    own.set_current()
    desk.told["services"] = {}
    desk.told["largest_request_bytes"] = 1000
    submitter = Submitter(Settings.load(environment=desk.environment))
    assert submitter.submit({"endpoint": "anything:/x"}).state is State.SENT
    assert current_app.main == "own"
    with pytest.raises(InvalidRequest, match=r"at most 1,000 bytes"):
        submitter.submit({"endpoint": "api:/x", "payload": "x" * 1000})
    own.close()


def test_a_forked_program_is_told_what_is_wrong(desk: Desk) -> None:
    settings = Settings.load(environment=desk.environment)
    submit({"endpoint": "api:/x"}, settings=settings)
    code = (
        "import json, os, sys\n"
        "from headgate.errors import StorageError\n"
        "from headgate.integrations.celery.mediator import submit\n"
        "submit({'endpoint': 'api:/y'})\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        submit({'endpoint': 'api:/z'})\n"
        "    except StorageError as error:\n"
        "        print(error)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    environment = {**os.environ, **desk.environment, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "use it first after the fork" in ran.stdout, ran.stderr
