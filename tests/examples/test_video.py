"""The video pipeline: paid runs that no kill repeats, against a strict service with a ledger."""

import json
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from examples.video.book import Book
from examples.video.server import Ledger, fingerprint
from examples.video.source import Source

SPACING = 0.3
PIPELINE_SPACING = 0.6  # so much later than it must: this machine may be busy with something else
LATEST = 30  # seconds to wait for anything


class Service:
    """The service in a process of its own."""

    def __init__(self, url: str, ledger: Path) -> None:
        self.url = url
        self._ledger = ledger

    def entries(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._ledger.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["event"] == event]

    def start(self, video: str, key: str | None = None) -> requests.Response:
        headers = {"Idempotency-Key": key} if key else {}
        body = {"input_uri": video}
        return requests.post(f"{self.url}/v1/videos:annotate", json=body, headers=headers, timeout=LATEST)


class Pipeline:
    """The pipeline in a process of its own; killed at the end if it has not ended."""

    def __init__(self, service: Service, directory: Path, *options: str) -> None:
        command = [sys.executable, "-m", "examples.video.pipeline", f"--service={service.url}"]
        command += [f"--source={directory / 'source.db'}", f"--directory={directory}"]
        command += [f"--spacing={PIPELINE_SPACING}", "--poll=0.05", "--visible-after=1", "--until-empty"]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE)
        self.output = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.communicate()

    def wait_for(self, text: bytes) -> None:
        """Until it has printed that."""
        stream = self.process.stdout
        assert stream is not None
        deadline = time.monotonic() + LATEST
        while text not in self.output:
            ready, _, _ = select.select([stream], [], [], max(deadline - time.monotonic(), 0))
            chunk = os.read(stream.fileno(), 65536) if ready else b""
            assert chunk, f"no {text!r} in {self.output!r}"
            self.output += chunk

    def kill(self) -> None:
        """As by `kill -9`."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> str:
        """Wait for its end; return what it printed."""
        rest, _ = self.process.communicate(timeout=2 * LATEST)
        assert self.process.returncode == 0
        return (self.output + rest).decode()


@contextmanager
def service(directory: Path, *options: str) -> Iterator[Service]:
    ledger = directory / "ledger.jsonl"
    command = [sys.executable, "-m", "examples.video.server", f"--ledger={ledger}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Service(process.stdout.readline().strip(), ledger)
        finally:
            process.terminate()


def fill(directory: Path, count: int) -> list[str]:
    videos = [f"gs://videos/{number}.mp4" for number in range(count)]
    with closing(Source(directory / "source.db")) as source:
        source.send(videos)
    return videos


def results(directory: Path) -> dict[str, dict[str, Any]]:
    with closing(Book(directory / "book.db")) as book:
        return book.results()


def holds_within(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.scenarios
def test_kills_at_random_moments_repeat_no_paid_run(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    chance = random.Random(seed)
    videos = fill(tmp_path, 10)
    timing = [f"--spacing={SPACING}", "--work=0.4", "--answer-after=0.3"]
    with service(tmp_path, *timing) as server:
        for _ in range(6):
            with Pipeline(server, tmp_path, "--twice=0.2") as pipeline:
                pipeline.wait_for(b"runs of this month are used")
                time.sleep(chance.uniform(0, 1.5))
        with Pipeline(server, tmp_path, "--twice=0.2") as pipeline:
            pipeline.end()
        paid, refused = server.entries("paid"), server.entries("refused")
        print(f"\nseed {seed}: {len(server.entries('repeated key'))} starts repeated with their key")
    assert Counter(line["input_uri"] for line in paid) == Counter(videos)
    assert refused == []
    starts = [line["at"] for line in paid]
    assert min(after - before for before, after in pairwise(starts)) >= SPACING
    stored = results(tmp_path)
    assert sorted(stored) == sorted(videos)
    assert all(result["input_uri"] == video for video, result in stored.items())
    with closing(Source(tmp_path / "source.db")) as source:
        assert len(source) == 0


@pytest.mark.scenarios
def test_killed_between_charge_and_answer_it_pays_once(tmp_path: Path) -> None:
    (video,) = fill(tmp_path, 1)
    with service(tmp_path, "--spacing=0.3", "--work=0.2", "--answer-after=0.5") as server:
        with Pipeline(server, tmp_path) as pipeline:
            assert holds_within(lambda: len(server.entries("paid")) == 1, LATEST)
            pipeline.kill()
        with Pipeline(server, tmp_path) as pipeline:
            assert f"{video}: started as operations/1" in pipeline.end()
        assert len(server.entries("paid")) == 1
        assert len(server.entries("repeated key")) == 1
    assert list(results(tmp_path)) == [video]


@pytest.mark.scenarios
def test_killed_while_a_run_is_under_way_it_asks_after_that_run(tmp_path: Path) -> None:
    (video,) = fill(tmp_path, 1)
    month = "--month=1"  # so there is none left for the second process, and it needs none
    with service(tmp_path, "--spacing=0.3", "--work=1", month) as server:
        with Pipeline(server, tmp_path, month) as pipeline:
            pipeline.wait_for(b"started as operations/1")
            pipeline.kill()
        with Pipeline(server, tmp_path, month) as pipeline:
            assert "started" not in pipeline.end()
        assert len(server.entries("paid")) == 1
        assert server.entries("repeated key") == []
    assert list(results(tmp_path)) == [video]


@pytest.mark.scenarios
def test_started_again_at_once_it_keeps_the_spacing(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    with service(tmp_path, "--spacing=2", "--work=0") as server:
        with Pipeline(server, tmp_path, "--spacing=2.3") as pipeline:
            pipeline.wait_for(b"0.mp4: stored")
            pipeline.kill()
        with Pipeline(server, tmp_path, "--spacing=2.3") as pipeline:
            pipeline.end()
        assert len(server.entries("paid")) == 2
        assert server.entries("refused") == []


@pytest.mark.scenarios
def test_month_is_counted_across_processes(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    month = "--month=2"
    with service(tmp_path, "--spacing=0.3", "--work=0", month) as server:
        with Pipeline(server, tmp_path, month) as pipeline:
            pipeline.wait_for(b"1.mp4: stored")
        with Pipeline(server, tmp_path, month) as pipeline:
            pipeline.wait_for(b"2 of 2 runs of this month are used")
            assert not holds_within(lambda: bool(server.entries("refused")), 1.5)
        assert len(server.entries("paid")) == 2
    assert len(results(tmp_path)) == 2


def test_service_charges_a_key_once(tmp_path: Path) -> None:
    with service(tmp_path, "--spacing=60") as server:
        first, again = server.start("gs://a", "key 1"), server.start("gs://a", "key 1")
        assert first.json() == again.json() == {"name": "operations/1"}
        assert server.start("gs://b", "key 1").status_code == 422
        assert [line["input_uri"] for line in server.entries("paid")] == ["gs://a"]
        assert [line["key"] for line in server.entries("repeated key")] == ["key 1"]


def test_service_refuses_what_is_early_or_too_many(tmp_path: Path) -> None:
    with service(tmp_path, "--spacing=60") as server:
        answers = [server.start("gs://a"), server.start("gs://b")]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert answers[1].headers["Retry-After"] == "60"
        assert len(server.entries("refused")) == 1
    with service(tmp_path, "--spacing=0", "--month=2") as server:  # it goes on with its ledger
        answers = [server.start("gs://c"), server.start("gs://d")]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert "more than 2 this month" in answers[1].text


def test_month_ends_with_the_month(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.paid["operations/1"] = {"at": datetime(2020, 1, 31, tzinfo=UTC).timestamp()}
    assert ledger.started_this_month() == 0
    ledger.write("paid", operation="operations/2")
    assert ledger.started_this_month() == 1


def test_book_counts_a_video_once_and_since_an_instant(tmp_path: Path) -> None:
    with closing(Book(tmp_path / "book.db")) as book:
        for video in ("gs://a", "gs://b", "gs://a"):
            book.note_start(video)
        assert book.starts_since(datetime(2020, 1, 1, tzinfo=UTC)) == 2
        assert book.starts_since(datetime(9000, 1, 1, tzinfo=UTC)) == 0
        assert book.has_start("gs://a")
        assert not book.has_start("gs://c")


def test_book_keeps_one_result_for_a_video(tmp_path: Path) -> None:
    with closing(Book(tmp_path / "book.db")) as book:
        assert not book.has_result("gs://a")
        book.store("gs://a", {"labels": ["canal"]})
        assert book.has_result("gs://a")
        with pytest.raises(sqlite3.IntegrityError):
            book.store("gs://a", {"labels": []})
        assert book.results() == {"gs://a": {"labels": ["canal"]}}


def test_source_delivers_again_until_acknowledged(tmp_path: Path) -> None:
    with closing(Source(tmp_path / "source.db", visible_after=0)) as source:
        source.send(["gs://a"])
        first, again = source.receive(), source.receive()
        assert first is not None
        assert again == first._replace(deliveries=2)
        source.acknowledge(first)
        assert source.receive() is None
        assert len(source) == 0


def test_source_hides_what_was_received(tmp_path: Path) -> None:
    with closing(Source(tmp_path / "source.db", visible_after=60)) as source:
        source.send(["gs://a", "gs://b"])
        received = [source.receive() for _ in range(3)]
        assert [message and message.video for message in received] == ["gs://a", "gs://b", None]


def test_source_delivers_twice_where_asked_to(tmp_path: Path) -> None:
    with closing(Source(tmp_path / "source.db", visible_after=60, twice=1)) as source:
        source.send(["gs://a"])
        assert [source.receive(), source.receive()] == [(1, "gs://a", 1), (1, "gs://a", 2)]


def test_feeding_thousands_takes_no_more_memory_than_a_batch(tmp_path: Path) -> None:
    with closing(Source(tmp_path / "source.db")) as source:
        tracemalloc.start()
        try:
            count = source.send(f"gs://videos/{'x' * 100}/{number}.mp4" for number in range(20_000))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == len(source) == 20_000
    assert peak < 1_000_000  # all of them would be more than three times that


def test_feed_puts_in_a_video_for_each_line(tmp_path: Path) -> None:
    path = tmp_path / "new/source.db"
    feed = subprocess.run(
        [sys.executable, "-m", "examples.video.feed", str(path)],
        input="gs://a\n\n  gs://b\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert feed.stdout == "2 videos put in; 2 wait\n"
    with closing(Source(path)) as source:
        first, second = source.receive(), source.receive()
    assert (first and first.video, second and second.video) == ("gs://a", "gs://b")


def test_videos_are_known_by_their_names() -> None:
    assert fingerprint("gs://a") == fingerprint("gs://a") != fingerprint("gs://b")
