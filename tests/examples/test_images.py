"""The image-tagging clients, before and after, against a strict server at a small scale."""

import json
import logging
import os
import re
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from examples.images import demo, original, tag
from examples.images.server import LABELS, Bucket, make_tags
from headgate import Runner

ROOT = Path(__file__).parents[2]
KEY = "s3cret/key+1"  # not the same in a URL
IMAGES = 10
RATE = 10
STATISTICS = re.compile(
    r"\[60\] requests processed in \[([\d.]+)\] seconds with average time \[[\d.]+\] ms, "
    r"total throughput: \[[\d.]+\] rps"
)


class Demo:
    """A run of `python -m examples.images.demo` in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "build/images"
        command = [sys.executable, "-m", "examples.images.demo", f"--images={IMAGES}", f"--rate={RATE}"]
        self.run = subprocess.run(
            [*command, "--latency=0.1"],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(ROOT), "IMAGES_KEY": KEY},
            capture_output=True,
            text=True,
            check=False,
        )

    def seen(self, client: str) -> list[dict[str, Any]]:
        """What the server's log tells of a client."""
        lines = (self.directory / f"{client}-server.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def statuses(self, client: str) -> Counter[int]:
        return Counter(line["status"] for line in self.seen(client))


@pytest.fixture(scope="module")
def at_small_scale(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("images"))


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("IMAGES_KEY", KEY)
    with demo.server(RATE, 0.0, tmp_path / "server.jsonl") as url:
        yield url


@pytest.mark.scenarios
def test_original_is_refused_many_times_and_tag_never(at_small_scale: Demo) -> None:
    assert at_small_scale.run.returncode == 0, at_small_scale.run.stdout + at_small_scale.run.stderr
    assert at_small_scale.statuses("tag") == {200: 60}
    before = at_small_scale.statuses("original")
    assert before[200] == 60
    assert before[429] > 0


@pytest.mark.scenarios
def test_both_print_the_same_line_of_statistics(at_small_scale: Demo) -> None:
    seconds = [float(found) for found in STATISTICS.findall(at_small_scale.run.stdout)]
    assert len(seconds) == 2
    # 10 at once and 10 a second: whoever is faster has not been held to the limit.
    assert all(found >= 4.9 for found in seconds)


@pytest.mark.scenarios
def test_results_are_grouped_by_image(at_small_scale: Demo) -> None:
    for client in ("original", "tag"):
        results = json.loads((at_small_scale.directory / f"{client}.json").read_text(encoding="utf-8"))
        images = [f"http://images.example/{number:03}.jpg" for number in range(IMAGES)]
        assert results == {image: {model: make_tags(model, image) for model in LABELS} for image in images}


@pytest.mark.scenarios
def test_key_is_in_no_output_and_no_file(at_small_scale: Demo) -> None:
    texts = [at_small_scale.run.stdout, at_small_scale.run.stderr]
    texts += [path.read_text(encoding="utf-8") for path in at_small_scale.directory.iterdir()]
    assert len(texts) == 7
    assert not any(is_in(text) for text in texts)


def test_errors_and_logs_are_free_of_the_key(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        errors = [
            error_of(tag.Images(url, "us", KEY), "no such model"),
            error_of(tag.Images(url, "nowhere", KEY), "room"),
            error_of(tag.Images(url, "us", KEY + "?"), "room"),
            error_of(tag.Images("http://127.0.0.1:1", "us", KEY), "room"),
        ]
    assert [str(error) for error in errors] == [
        "HTTP 400",
        "HTTP 404",
        "HTTP 401",
        "no answer: ConnectionError",
    ]
    for error in errors:
        assert not is_in("".join(traceback.format_exception(error)) + repr(error.args))
        assert error.__context__ is None
    assert not is_in(caplog.text)


def test_a_plain_error_of_requests_would_have_told_the_key(url: str) -> None:
    with pytest.raises(requests.HTTPError) as caught:
        requests.get(f"{url}/us/segmentation", params={"client_key": KEY}, timeout=30).raise_for_status()
    assert is_in(str(caught.value))


def test_wrong_key_ends_the_run_at_once(url: str, tmp_path: Path) -> None:
    runner = Runner(tag.Images(url, "us", "guessed").tag, f"requests={RATE}/s:burst=1", progress=False)
    for number in range(50):
        runner.schedule(f"http://images.example/{number}.jpg", "room")
    ended = runner.run()
    assert not any(ended[0])
    assert ended.stopped == "the API key was refused: HTTP 401"
    assert len((tmp_path / "server.jsonl").read_text(encoding="utf-8").splitlines()) < 5


def test_each_region_has_its_own_limit(url: str) -> None:
    for region in ("us", "eu"):
        service = tag.Images(url, region, KEY)
        assert [len(service.tag(f"http://images.example/{n}.jpg", "room")) for n in range(RATE)] == [2] * RATE


def test_bucket_lets_its_rate_through_and_no_more() -> None:
    bucket = Bucket(3)
    start = bucket._filled_at
    assert [bucket.admits(start) for _ in range(4)] == [True, True, True, False]
    assert not bucket.admits(start + 0.25)
    assert bucket.admits(start + 0.5)
    assert [bucket.admits(start + 60) for _ in range(4)] == [True, True, True, False]


def test_clients_and_server_know_the_same_models() -> None:
    assert original.MODELS == tag.MODELS == tuple(LABELS)
    assert len(LABELS) == demo.MODELS


def error_of(service: tag.Images, model: str) -> requests.RequestException:
    with pytest.raises(requests.RequestException) as caught:
        service.tag("http://images.example/1.jpg", model)
    return caught.value


def is_in(text: str) -> bool:
    """Whether the key, or what stands for it in a URL, can be read there."""
    return any(form in text for form in (KEY, "s3cret", quote(KEY, safe="")))
