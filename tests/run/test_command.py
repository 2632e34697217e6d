"""The command as strangers use it: every way to end, every way to go on."""

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from headgate.cli import run as cli
from tests.run.running import (
    FAST,
    SECRET,
    Started,
    command,
    environment,
    errors,
    ids,
    line,
    plain_lines,
    read,
    results,
    run,
    settled,
    wait_until,
    write_lines,
)
from tests.run.servers import Ledger

FAILS = {"status": 400, "json": {"error": {"message": "no such thing", "code": "bad"}}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


def names(count: int, start: int = 0) -> list[str]:
    return [f"id-{number}" for number in range(start, start + count)]


def wait_for_calls(server: Ledger, count: int) -> None:
    wait_until(lambda: server.count() >= count)


# Results and failures


def test_each_line_ends_in_exactly_one_file_and_some_failures_mean_exit_1(
    source: Path, server: Ledger
) -> None:
    write_lines(source, [line("good"), line("bad", FAILS), line("get", method="GET"), line("fine")])
    ran = run(source, server.url, "--limit", FAST)
    assert ran.code == 1
    settled(source, ["good", "bad", "get", "fine"])
    [failed] = read(errors(source))
    assert failed["custom_id"] == "bad"
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["code"] == "bad"
    assert failed["error"]["message"] == "no such thing"
    for item in read(results(source)):
        assert item["error"] is None
        assert item["response"]["status_code"] == 200
        assert item["response"]["body"]["ok"] is True


def test_all_succeeded_means_exit_0_and_no_errors_file(source: Path, server: Ledger) -> None:
    plain_lines(source, 20)
    assert run(source, server.url, "--limit", FAST).code == 0
    settled(source, names(20))
    assert not errors(source).exists()


def test_an_empty_input_is_done_at_once(source: Path, server: Ledger) -> None:
    source.write_text("\n\n")
    assert run(source, server.url).code == 0
    assert server.count() == 0


def test_any_method_path_and_query_are_sent_as_they_are(source: Path, server: Ledger) -> None:
    echo = {"how": "echo"}
    lines = [
        line("patch", echo, method="patch", url="/v2/a%2Fb/c?x=1&y=%20z"),
        line("whole", echo, url=f"{server.url}/deep/er"),
        line("bare", echo, url="no/slash"),
        line("text", echo, url="/ü b/ñ?q=é à"),
        {"custom_id": "raw", "url": "/raw", "body": 'text as it is "do":[{"how":"echo"}]'},
    ]
    write_lines(source, lines[:4])
    assert run(source, server.url).code == 0
    seen = {
        item["custom_id"]: item["response"]["body"]["head"].split("\r\n")[0] for item in read(results(source))
    }
    assert seen == {
        "patch": "PATCH /v2/a%2Fb/c?x=1&y=%20z HTTP/1.1",
        "whole": "POST /deep/er HTTP/1.1",
        "bare": "POST /no/slash HTTP/1.1",
        "text": "POST /%C3%BC%20b/%C3%B1?q=%C3%A9%20%C3%A0 HTTP/1.1",
    }


def test_a_base_path_is_kept_and_meant_once(source: Path, server: Ledger) -> None:
    echo = {"how": "echo"}
    write_lines(source, [line("a", echo, url="/v1/chat"), line("b", echo, url="/other")])
    assert run(source, server.url + "/v1/").code == 0
    seen = {
        item["custom_id"]: item["response"]["body"]["head"].split(" ")[1] for item in read(results(source))
    }
    assert seen == {"a": "/v1/chat", "b": "/v1/other"}


ONE_LINE: list[dict[str, Any]] = [
    {"text": "plain words", "headers": {"content-type": "text/plain"}},
    {"text": '{"a":\n 1}\r\n'},
    {"text": '﻿{"bom": 1}'.encode().decode("latin-1")},
    {"text": '{"u": "\u2028\x85 end"}'.encode().decode("latin-1")},
    {"text": '{"lone": "\\ud800",\n"x": 1}'},
    {"text": '{"lone": "\\ud800"}'},
    {
        "text": "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1"),
        "headers": {"content-type": "text/x"},
    },
    {"text": '{"a": "b"}'.encode("utf-16").decode("latin-1")},
    {"status": 204, "text": ""},
    {"how": "chunked", "json": {"parts": list(range(50))}},
    {"how": "drip", "json": {"slowly": True}},
    {"size": 3 << 20},
]


def test_whatever_is_answered_a_result_is_one_line_of_json(source: Path, server: Ledger) -> None:
    write_lines(source, [line(f"id-{n}", answer) for n, answer in enumerate(ONE_LINE)])
    assert run(source, server.url).code == 0
    settled(source, names(len(ONE_LINE)))
    bodies = {item["custom_id"]: item["response"]["body"] for item in read(results(source))}
    assert bodies["id-0"] == "plain words"
    assert bodies["id-2"] == {"bom": 1}
    assert bodies["id-3"] == {"u": "\u2028\x85 end"}
    assert bodies["id-5"] == {"lone": "\ud800"}
    assert bodies["id-7"] == {"a": "b"}
    assert bodies["id-8"] == ""
    assert len(bodies["id-11"]) == (3 << 20) - 2


BROKEN: list[dict[str, Any]] = [
    {"text": '{"id": "half'},
    {"text": "<html>bad gateway</html>"},
    {"text": ""},
    {"text": '{"x": NaN}'},
    {"text": b'{"x": "\xff\xfe"}'.decode("latin-1")},
    {"how": "reset"},
    {"how": "close"},
    {"how": "cut", "json": {"some": "thing"}},
    {"raw": "HELLO\r\n\r\n"},
    {"raw": "HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n{}"},
    {"raw": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n{}"},
    {"status": 500, "json": {"error": "string"}},
    {"status": 502, "text": "<html>", "headers": {"content-type": "text/html"}},
    {"status": 503, "json": ["list"]},
    {"status": 529, "json": {"error": {"message": None}}},
    {"status": 408},
    {"status": 429, "json": {}},
    {"status": 429, "text": "not json", "headers": {"retry-after": "0.1"}},
]


def test_what_may_pass_next_time_is_sent_again_with_the_same_key(source: Path, server: Ledger) -> None:
    write_lines(source, [line(f"id-{n}", broken, {}) for n, broken in enumerate(BROKEN)])
    assert run(source, server.url, "--limit", FAST).code == 0
    settled(source, names(len(BROKEN)))
    keys: dict[str, list[str]] = {}
    for entry in server.received():
        keys.setdefault(entry.name, []).append(entry.key)
    assert {name: len(found) for name, found in keys.items()} == dict.fromkeys(names(len(BROKEN)), 2)
    assert all(len(set(found)) == 1 for found in keys.values())


FINAL: list[dict[str, Any]] = [
    {"status": 400},
    {"status": 403, "text": "forbidden"},
    {"status": 404, "text": "", "headers": {"content-type": "text/html"}},
    {"status": 413},
    {"status": 422, "json": {"error": {"message": 7, "code": ["x"], "type": {}}}},
    {"status": 301, "headers": {"location": "http://example.invalid/else"}},
    {"status": 307, "headers": {"location": "/v1/things"}},
    {"status": 429, "json": {"error": {"message": "Rate limit: Limit 10, Requested 11.", "code": "tokens"}}},
    {"status": 400, "json": {"error": {"message": "too long", "code": "context_length_exceeded"}}},
]


def test_what_can_never_pass_is_sent_once(source: Path, server: Ledger) -> None:
    write_lines(source, [line("fine"), *(line(f"id-{n}", answer) for n, answer in enumerate(FINAL))])
    assert run(source, server.url, "--limit", FAST).code == 1
    settled(source, ["fine", *names(len(FINAL))])
    assert server.count() == len(FINAL) + 1
    found = {item["custom_id"]: item["response"]["status_code"] for item in read(errors(source))}
    assert found == {f"id-{n}": answer["status"] for n, answer in enumerate(FINAL)}


def test_a_call_that_keeps_failing_ends_with_its_last_error(source: Path, server: Ledger) -> None:
    write_lines(
        source, [line("x", {"status": 500}, {"status": 503, "json": {"error": {"message": "the last"}}})]
    )
    assert run(source, server.url, "--max-attempts", "2").code == 1
    [failed] = read(errors(source))
    assert failed["response"]["status_code"] == 503
    assert failed["error"]["message"] == "the last"
    assert failed["error"]["attempts"] == 2
    assert server.count() == 2


def test_odd_figures_in_answers_hurt_nobody(source: Path, server: Ledger) -> None:
    huge = "9" * 400
    odd: list[dict[str, Any]] = [
        {"json": {"usage": {"prompt_tokens": -5, "completion_tokens": 1}}},
        {"json": {"usage": {"prompt_tokens": True, "completion_tokens": False}}},
        {"text": '{"usage": {"prompt_tokens": %s, "completion_tokens": 1}}'.replace("%s", huge)},
        {"json": {"usage": {"prompt_tokens": 1.5, "completion_tokens": None}}},
        {"json": {"usage": {"prompt_tokens": 3, "completion_tokens": -7}}},
        {"json": {"usage": []}},
        {"json": [1]},
        {"headers": {"x-ratelimit-remaining-tokens": huge, "x-ratelimit-limit-tokens": huge}},
        {"headers": {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-limit-requests": "0"}},
        {"headers": {"x-ratelimit-reset-requests": huge + "h", "x-ratelimit-limit-requests": "5"}},
        {"headers": {"date": "Sun, 99 Nov 99999 99:99:99 GMT", "retry-after": "soon"}},
        {"headers": {"x-ratelimit-limit-requests": "²"}},
    ]
    refusal = {"message": f"Limit {huge * 20}, Requested 5. try again in {huge}h", "code": 5, "type": None}
    lines = [line(f"odd-{i}", answer) for i, answer in enumerate(odd)]
    lines += [line("bad", {"status": 400, "json": {"error": refusal}})]
    write_lines(source, lines)
    ran = run(
        source,
        server.url,
        "--limit",
        FAST,
        "--limit",
        "tokens=100k/s:burst=50k:start=full",
        "--max-tokens",
        "5",
    )
    assert ran.code == 1
    settled(source, [f"odd-{i}" for i in range(len(odd))] + ["bad"])
    assert ids(errors(source)) == ["bad"]


def test_without_a_rate_limit_a_refusal_is_waited_out_by_all(source: Path, server: Ledger) -> None:
    refused = {"status": 429, "headers": {"retry-after": "1"}}
    write_lines(source, [line("x", refused, {}), *(line(f"id-{n}", {"after": 0.2}) for n in range(30))])
    for limits in ([], ["--limit", "concurrency=2"]):
        before = server.count()
        assert (
            run(
                source, server.url, "--fresh", "--summary-json", str(source.with_suffix(".sum")), *limits
            ).code
            == 0
        )
        settled(source, ["x", *names(30)])
        assert server.count() - before == 32
        assert json.loads(source.with_suffix(".sum").read_text())["refused"] == 1
    # nobody went while the server had asked for quiet
    [first, again] = [e.at for e in server.received() if e.name == "x"][-2:]
    quiet = [e for e in server.received() if first + 0.1 < e.at < first + 0.9]
    assert again - first >= 1.0
    assert not quiet


def test_a_limit_that_refuses_shuts_for_as_long_as_it_says(source: Path, server: Ledger) -> None:
    write_lines(
        source, [line("x", {"status": 429, "headers": {"retry-after-ms": "700"}}, {}), *map(line, names(20))]
    )
    assert run(source, server.url, "--limit", "requests=20/s:burst=2").code == 0
    times = [e.at for e in server.received()]
    assert any(b - a >= 0.69 for a, b in pairwise(times))
    assert len(times) == 22


# Malformed lines and ids


MALFORMED = [
    "{",
    "[]",
    "7",
    '"text"',
    "\x00",
    '{"custom_id": "no-url"}',
    '{"custom_id": "m1", "url": 5, "body": {}}',
    '{"custom_id": "m2", "url": "/x", "method": "GE T"}',
    '{"custom_id": "m3", "url": "/x", "method": "ÉTÉ"}',
    '{"custom_id": "m4", "url": "http://[bad/x"}',
    '{"custom_id": "m5", "url": "http://elsewhere.invalid/x"}',
    '{"custom_id": "m6", "url": "//[x"}',
    '{"custom_id": "m7", "url": "/x", "body": {"stream": true}}',
    '{"custom_id": "m8", "url": "/x", "body": {"max_tokens": "many"}}',
    '{"custom_id": null, "url": "/x"}',
    '{"custom_id": true, "url": "/x"}',
    '{"custom_id": {"a": 1}, "url": "/x"}',
    '{"custom_id": 1.5, "url": "/x"}',
    '{"url": "/x"}',
    '{"custom_id": "m9", "url": "/x", "body": ' + "[" * 100_000,
    '{"custom_id": "m10", "url": "/x", "n": ' + "9" * 5000 + "}",
    '{"custom_id": "m11", "url": "/x", "body": NaN}',
]


def test_malformed_lines_are_told_by_number_and_stop_nobody(source: Path, server: Ledger) -> None:
    lines: list[Any] = [line("first")]
    for number, bad in enumerate(MALFORMED):
        lines += [bad, line(f"id-{number}")]
    write_lines(source, lines)
    with source.open("ab") as file:
        file.write(b'{"custom_id": "\xff", "url": "/x"}\n')
    ran = run(source, server.url, "--limit", FAST)
    assert ran.code == 1
    assert sorted(ids(results(source))) == sorted(["first", *names(len(MALFORMED))])
    failed = read(errors(source))
    assert [item["error"]["line"] for item in failed] == [
        *range(2, 2 * len(MALFORMED) + 1, 2),
        2 * len(MALFORMED) + 2,
    ]
    assert all(item["error"]["code"] == "malformed_line" for item in failed)
    assert "line 2:" in ran.err
    assert "more malformed lines" in ran.err


def test_lines_that_are_strange_but_sound_are_sent(source: Path, server: Ledger) -> None:
    echo = {"how": "echo"}
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    lines: list[Any] = [
        json.dumps(line("spaces", echo)).replace(":", " : ").replace("{", "{\t", 1),
        '{"body": {"n": "last", "do": [{"how": "echo"}]}, "url": "/x", "custom_id": "l\\u0061st"}',
        line("surrogate", echo, body={"x": "\ud800"}),
        line('quote"\\\n', echo),
        line("☃", echo),
        line("", echo),
        line("deep", echo, body={"deep": deep}),
        {"custom_id": 12, "url": "/x", "body": {"n": "12", "do": [echo]}},
        {"custom_id": "string", "url": "/x", "body": "any \ud800 text"},
        {"custom_id": "number", "url": "/x", "body": 5},
        {"custom_id": "none", "url": "/x", "body": None},
    ]
    write_lines(source, lines)
    data = source.read_bytes().replace(b"\n", b"\r\n", 2)
    source.write_bytes(b"\xef\xbb\xbf" + data.rstrip(b"\n"))
    assert run(source, server.url, "--limit", FAST).code == 0
    expected = [
        "spaces",
        "last",
        "surrogate",
        'quote"\\\n',
        "☃",
        "",
        "deep",
        "12",
        "string",
        "number",
        "none",
    ]
    settled(source, expected)
    found = {item["custom_id"]: item for item in read(results(source))}
    assert json.loads(found["surrogate"]["response"]["body"]["body"])["x"] == "\ud800"


@pytest.mark.parametrize("column", [None, "key"])
def test_an_id_that_stands_twice_is_refused_before_anything_is_sent(
    source: Path, server: Ledger, column: str | None
) -> None:
    lines = [line(f"id-{number}", key=f"key-{number}") for number in range(20)]
    lines[17]["custom_id" if column is None else column] = lines[3]["custom_id" if column is None else column]
    write_lines(source, ["", *lines])
    ran = run(source, server.url, *(["--id-column", column] if column else []))
    assert ran.code == 2
    assert "lines 5 and 19" in ran.err
    assert server.count() == 0
    assert not results(source).exists()


def test_the_same_id_as_text_and_as_number_is_one_id(source: Path, server: Ledger) -> None:
    write_lines(source, [{"custom_id": "7", "url": "/x"}, {"url": "/x", "custom_id": 7}])
    ran = run(source, server.url)
    assert ran.code == 2
    assert "lines 1 and 2" in ran.err
    assert server.count() == 0


# Going on


def test_a_rerun_sends_only_what_is_left_and_tries_failures_again(source: Path, server: Ledger) -> None:
    write_lines(source, [line("a"), line("once", FAILS, {}), line("never", FAILS), "not json"])
    assert run(source, server.url).code == 1
    assert sorted(map(str, ids(errors(source)))) == ["None", "never", "once"]
    ran = run(source, server.url)
    assert ran.code == 1
    assert [item["custom_id"] for item in read(errors(source)) if item["custom_id"]] == ["never"]
    assert sorted(ids(results(source))) == ["a", "once"]
    sent = [entry.name for entry in server.received()]
    assert (sent.count("a"), sent.count("once"), sent.count("never")) == (1, 2, 2)
    keys: dict[str, set[str]] = {}
    for entry in server.received():
        keys.setdefault(entry.name, set()).add(entry.key)
    assert all(len(found) == 1 for found in keys.values())
    assert len(set.union(*keys.values())) == 3


def test_appended_lines_are_done_and_the_others_left_alone(source: Path, server: Ledger) -> None:
    plain_lines(source, 5)
    assert run(source, server.url).code == 0
    with source.open("a") as file:
        file.write("\n" + json.dumps(line("new")) + "\n")
    assert run(source, server.url).code == 0
    settled(source, [*names(5), "new"])
    assert server.count() == 6


def test_lines_appended_behind_an_end_without_line_break(source: Path, server: Ledger) -> None:
    plain_lines(source, 2)
    whole = source.read_text().rstrip("\n")
    source.write_text(whole)
    assert run(source, server.url).code == 0
    source.write_text(whole + "\n" + json.dumps(line("new")))
    assert run(source, server.url).code == 0
    settled(source, [*names(2), "new"])
    # glued to the last line it would be lost without a word
    source.write_text(source.read_text() + json.dumps(line("glued")) + "\n")
    ran = run(source, server.url)
    assert ran.code == 2
    assert "has changed" in ran.err
    assert server.count() == 3


@pytest.mark.parametrize("change", ["edited", "shorter", "reordered", "other"])
def test_a_changed_input_is_refused_and_nothing_mixed_up(source: Path, server: Ledger, change: str) -> None:
    plain_lines(source, 6)
    assert run(source, server.url).code == 0
    kept = results(source).read_bytes()
    lines = source.read_text().splitlines(keepends=True)
    match change:
        case "edited":
            lines[2] = json.dumps(line("id-2", {"how": "echo"})) + "\n"
        case "shorter":
            del lines[5]
        case "reordered":
            lines.reverse()
        case _:
            lines = [json.dumps(line(f"other-{n}")) + "\n" for n in range(9)]
    source.write_text("".join(lines))
    ran = run(source, server.url)
    assert ran.code == 2
    assert "has changed" in ran.err
    assert "--fresh" in ran.err
    assert results(source).read_bytes() == kept
    assert server.count() == 6
    assert run(source, server.url, "--fresh").code == 0
    assert len(ids(results(source))) == len(lines)


def test_options_that_change_requests_are_refused_in_a_rerun(source: Path, server: Ledger) -> None:
    write_lines(source, [line("a", n="a")])
    assert run(source, server.url).code == 0
    for option in (["--model", "m"], ["--max-tokens", "5"], ["--id-column", "n"]):
        done = CliRunner().invoke(cli.run, [str(source), "--base-url", server.url, *option])
        assert done.exit_code == 2
        assert "another template, model" in done.stderr
    assert server.count() == 1


def test_fresh_starts_over_with_other_keys(source: Path, server: Ledger) -> None:
    plain_lines(source, 3)
    assert run(source, server.url).code == 0
    assert run(source, server.url, "--fresh").code == 0
    settled(source, names(3))
    assert len({entry.key for entry in server.received()}) == 6


def test_an_output_of_somebody_else_is_not_touched(source: Path, server: Ledger) -> None:
    plain_lines(source, 3)
    results(source).write_text("precious\n")
    assert run(source, server.url).code == 2
    assert results(source).read_text() == "precious\n"
    assert server.count() == 0


def test_wrong_usage_with_fresh_destroys_nothing(source: Path, server: Ledger) -> None:
    write_lines(source, [line("a"), line("b", FAILS)])
    assert run(source, server.url).code == 1
    kept = results(source).read_bytes(), errors(source).read_bytes()
    for wrong in (["--store", "nowhere://x"], ["--limit", FAST, "--limit", FAST], ["--limit", "timeout=5/s"]):
        assert (
            CliRunner().invoke(cli.run, [str(source), "--base-url", server.url, "--fresh", *wrong]).exit_code
            == 2
        )
        assert (results(source).read_bytes(), errors(source).read_bytes()) == kept


def test_half_a_line_at_the_end_of_the_output_is_cut_off_and_done_again(source: Path, server: Ledger) -> None:
    plain_lines(source, 4)
    assert run(source, server.url).code == 0
    whole = results(source).read_bytes()
    results(source).write_bytes(whole[:-20])
    assert run(source, server.url).code == 0
    settled(source, names(4))
    assert server.count() == 5


def test_two_runs_at_once_do_not_write_to_one_output(source: Path, server: Ledger) -> None:
    write_lines(source, [line(name, {"after": 1.0}) for name in names(4)])
    with Started(source, server.url) as first:
        wait_until(lambda: server.count() >= 1)
        second = run(source, server.url)
        assert second.code == 2
        assert "another run" in second.err
        assert first.end().code == 0
    settled(source, names(4))
    assert server.count() == 4


# Standard input and output


def test_standard_input_goes_on_by_id(tmp_path: Path, server: Ledger) -> None:
    out = tmp_path / "out.jsonl"
    text = "".join(json.dumps(line(name)) + "\n" for name in names(5))
    assert run("-", server.url, "--output", str(out), stdin=text).code == 0
    more = "".join(json.dumps(line(name)) + "\n" for name in reversed(names(8)))
    assert run("-", server.url, "--output", str(out), stdin=more.rstrip("\n")).code == 0
    assert sorted(ids(out)) == names(8)
    assert server.count() == 8
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "out.jsonl",
        "out.jsonl.checkpoint",
    ]


def test_standard_input_with_bad_lines_and_a_twin(tmp_path: Path, server: Ledger) -> None:
    out = tmp_path / "out.jsonl"
    lines = [json.dumps(line("a")), "", "nonsense", json.dumps(line("b"))]
    ran = run("-", server.url, "--output", str(out), "--errors", str(tmp_path / "e"), stdin="\n".join(lines))
    assert ran.code == 1
    assert "line 3:" in ran.err
    assert sorted(ids(out)) == ["a", "b"]
    twins = [json.dumps(line("c")), json.dumps(line("d")), json.dumps(line("c"))]
    ran = run("-", server.url, "--output", str(out), stdin="\n".join(twins))
    assert ran.code == 2
    assert "lines 1 and 3" in ran.err


def test_standard_input_is_read_as_it_flows(tmp_path: Path, server: Ledger) -> None:
    out = tmp_path / "out.jsonl"
    with Started("-", server.url, "--output", str(out), stdin=subprocess.PIPE) as going:
        pipe = going.process.stdin
        assert pipe is not None
        pipe.write(json.dumps(line("a")).encode() + b"\n" + b'{"custom_id": ')
        pipe.flush()
        wait_until(lambda: server.count() == 1)
        wait_until(lambda: ids(out) == ["a"])
        pipe.write(b'"b", "url": "/x"}')
        pipe.close()
        going.process.stdin = None
        assert going.end().code == 0
    assert ids(out) == ["a", "b"]


def test_standard_input_that_waits_can_be_interrupted(tmp_path: Path, server: Ledger) -> None:
    out = tmp_path / "out.jsonl"
    with Started("-", server.url, "--output", str(out), stdin=subprocess.PIPE) as going:
        pipe = going.process.stdin
        assert pipe is not None
        pipe.write(json.dumps(line("a")).encode() + b"\n")
        pipe.flush()
        wait_until(lambda: server.count() == 1)
        going.signal(signal.SIGTERM)
        assert going.process.wait(10) == 130
    assert ids(out) == ["a"]


@pytest.mark.parametrize("first", ["file", "stdin"])
def test_a_file_and_standard_input_are_not_mixed_up(source: Path, server: Ledger, first: str) -> None:
    plain_lines(source, 4)
    text = source.read_text()
    ways: dict[str, dict[str, Any]] = {"file": {"source": source}, "stdin": {"source": "-", "stdin": text}}
    output = ["--output", str(results(source))]
    for way in (first, "stdin" if first == "file" else "file", first):
        ran = run(ways[way]["source"], server.url, *output, stdin=ways[way].get("stdin"))
        assert ran.code in (0, 2)
        assert sorted(ids(results(source))) == names(4)
    assert server.count() == 4


def test_results_can_go_to_standard_output(source: Path, server: Ledger) -> None:
    write_lines(source, [line("a"), line("b", FAILS)])
    ran = run(source, server.url, "--output", "-", "--errors", str(source.with_suffix(".bad")))
    assert ran.code == 1
    assert [json.loads(text)["custom_id"] for text in ran.out.splitlines()] == ["a"]
    assert ids(source.with_suffix(".bad")) == ["b"]


def test_a_reader_that_goes_away_ends_the_run(source: Path, server: Ledger) -> None:
    write_lines(source, [line(name, {"after": 0.05}) for name in names(50)])
    with subprocess.Popen(
        command(source, server.url, "--output", "-", "--limit", "concurrency=2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read().decode()
        assert process.wait(20) == 1
    assert "Traceback" not in told
    assert server.count() < 50


# Templates


def test_rows_and_a_template_make_requests(source: Path, server: Ledger) -> None:
    write_lines(source, [{"id": "a", "text": 'quote " and {brace}', "n": 3}, {"text": "no id", "n": None}])
    template = "Is this review kind? " + "Say yes or no. " * 30 + "{text} ({{ n }})"
    assert len(template) > 300
    assert run(source, server.url, "--template", template, "--model", "m", "--max-tokens", "9").code == 0
    settled(source, ["a", "row-2"])
    again = run(source, server.url, "--template", template, "--model", "m", "--max-tokens", "9")
    assert again.code == 0
    assert server.count() == 2


def test_a_template_file_and_an_id_column(source: Path, server: Ledger) -> None:
    write_lines(source, [{"key": 5, "q": "x"}, {"key": 6, "q": [1, 2]}, {"q": "no key"}, {"key": 7}])
    template = source.with_name("template.json")
    shape = {"method": "PUT", "url": "/rows/{key}", "body": {"value": "{q}", "do": [{"how": "echo"}]}}
    template.write_text(json.dumps(shape))
    assert run(source, server.url, "--template", str(template), "--id-column", "key").code == 1
    assert sorted(item["error"]["line"] for item in read(errors(source))) == [3, 4]
    found = {item["custom_id"]: item["response"]["body"] for item in read(results(source))}
    assert found.keys() == {"5", "6"}
    assert found["6"]["head"].startswith("PUT /rows/6 HTTP/1.1")
    assert json.loads(found["6"]["body"])["value"] == [1, 2]
    template.write_text(json.dumps({**shape, "url": "/else/{key}"}))
    assert run(source, server.url, "--template", str(template), "--id-column", "key").code == 2


# Stopping


def test_the_first_interrupt_lets_calls_come_back_and_the_rerun_does_the_rest(
    source: Path, server: Ledger
) -> None:
    write_lines(source, [line(name, {"after": 0.7}) for name in names(12)])
    with Started(source, server.url, "--limit", "concurrency=4") as going:
        wait_until(lambda: server.count() == 4)
        going.signal(signal.SIGINT)
        ran = going.end()
    assert ran.code == 130
    assert "same command goes on" in ran.err
    assert len(ids(results(source))) == 4
    assert server.count() == 4
    assert run(source, server.url, "--limit", "concurrency=12").code == 0
    settled(source, names(12))
    assert server.count() == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_stops_at_once(source: Path, server: Ledger, number: int) -> None:
    write_lines(source, [line(name, {"how": "hang"}) for name in names(4)])
    with Started(source, server.url, "--limit", "concurrency=2") as going:
        wait_until(lambda: server.count() == 2)
        going.signal(number)
        time.sleep(0.3)
        assert going.process.poll() is None
        started = time.monotonic()
        going.signal(number)
        ran = going.end()
    assert ran.code == 130
    assert time.monotonic() - started < 5
    assert ids(results(source)) + ids(errors(source)) == []


def has_open(files: Path, source: Path) -> bool:
    """Whether one of a process's open files is that one; it may close others meanwhile."""
    for file in files.iterdir():
        try:
            if file.samefile(source):
                return True
        except OSError:
            continue
    return False


def test_an_interrupt_while_the_input_is_looked_through_is_one_too(source: Path, server: Ledger) -> None:
    plain_lines(source, 300_000)
    with Started(source, server.url) as going:
        files = Path(f"/proc/{going.process.pid}/fd")
        if not files.exists():
            pytest.skip("no way to see when it reads")
        wait_until(lambda: has_open(files, source))
        going.signal(signal.SIGINT)
        ran = going.end()
    assert ran.code == 130
    assert server.count() == 0


def test_the_deadline_stops_with_3_and_the_rerun_goes_on(source: Path, server: Ledger) -> None:
    plain_lines(source, 60)
    started = time.monotonic()
    ran = run(source, server.url, "--limit", "requests=20/s:burst=5", "--deadline", "1")
    assert time.monotonic() - started < 5
    assert ran.code == 3
    assert "deadline" in ran.err
    done = len(ids(results(source)))
    assert 10 <= done <= 40
    assert run(source, server.url, "--limit", FAST).code == 0
    settled(source, names(60))
    assert server.count() == 60


def test_a_deadline_cuts_off_calls_that_hang(source: Path, server: Ledger) -> None:
    write_lines(source, [line("a"), line("hangs", {"how": "hang"})])
    started = time.monotonic()
    assert run(source, server.url, "--deadline", "0.5").code == 3
    assert time.monotonic() - started < 9
    assert ids(results(source)) == ["a"]


def test_a_day_that_is_used_up_stops_with_the_hour_it_opens(source: Path, server: Ledger) -> None:
    plain_lines(source, 9)
    limit = "requests=5/day:kind=calendar:zone=America/Los_Angeles"
    ran = run(source, server.url, "--limit", limit, "--deadline", "30")
    assert ran.code == 3
    assert "blocked until 00:00 America/Los_Angeles" in ran.err
    assert server.count() == 5
    assert len(ids(results(source))) == 5
    ran = run(source, server.url, "--limit", limit, "--deadline", "30")
    assert ran.code == 3
    assert "blocked until 00:00 America/Los_Angeles" in ran.err
    assert server.count() == 5
    # another limit beside it, or starting over, does not bring the day back
    for more in (["--limit", "requests=50/s:burst=5"], ["--fresh"]):
        assert run(source, server.url, "--limit", limit, "--deadline", "30", *more).code == 3
        assert server.count() == 5


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        ("requests=300/day:kind=calendar:zone=America/Los_Angeles", 300),
        ("requests=300/day:kind=sliding:start=full", 300),
    ],
)
def test_a_budget_of_a_day_survives_kills(source: Path, server: Ledger, limit: str, most: int) -> None:
    plain_lines(source, 2000)
    for enough in (50, 150, 200):
        with Started(source, server.url, "--limit", limit, "--limit", "concurrency=4") as going:
            wait_for_calls(server, enough)
            going.kill()
    ran = run(source, server.url, "--limit", limit, "--limit", "concurrency=4", "--deadline", "20")
    assert ran.code == 3
    assert 235 <= server.count() <= most  # each kill may cost a twentieth, and what was in flight


def test_a_budget_of_tokens_survives_a_kill(source: Path, server: Ledger) -> None:
    write_lines(source, [line(name, {"after": 0.05}, body={"max_tokens": 1000}) for name in names(60)])
    limit = ["--limit", "tokens=20k/day:kind=calendar", "--limit", "concurrency=3"]
    with Started(source, server.url, *limit) as going:
        wait_until(lambda: server.count() >= 10)
        going.kill()
    assert run(source, server.url, *limit, "--deadline", "20").code == 3
    assert server.count() <= 19  # each books more than 1,000


def test_no_credit_stops_everything_with_3(source: Path, server: Ledger) -> None:
    gone = {
        "status": 429,
        "json": {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
    }
    write_lines(source, [line("a"), line("broke", gone), *(line(n, {"after": 0.3}) for n in names(50))])
    ran = run(source, server.url, "--limit", "concurrency=2")
    assert ran.code == 3
    assert "credit" in ran.err
    assert "broke" in ids(errors(source))
    assert server.count() < 6


@pytest.mark.parametrize("status", [401, 402])
def test_a_key_that_is_refused_stops_the_run(source: Path, server: Ledger, status: int) -> None:
    write_lines(source, [line(name, {"status": status, "after": 0.05}) for name in names(50)])
    ran = run(source, server.url, "--limit", "concurrency=2", "--api-key-env", "THE_KEY")
    assert ran.code == (1 if status == 401 else 3)
    assert server.count() <= 4
    assert not [entry for entry in server.entries() if entry.event == "L"]  # nothing sent and hung up on


# Time-outs


def test_a_call_that_timed_out_keeps_its_slot_until_it_has_ended(source: Path, own_server: Ledger) -> None:
    server = own_server
    write_lines(source, [line(name, {"after": 1.2}, {}) for name in names(9)])
    summary = source.with_name("summary.json")
    ran = run(
        source, server.url, "--limit", "concurrency=3", "--timeout", "0.4", "--summary-json", str(summary)
    )
    assert ran.code == 0
    settled(source, names(9))
    assert max(entry.open for entry in server.received()) <= 3
    entries = server.entries()
    last = max(place for place, entry in enumerate(entries) if entry.event == "R")
    assert "L" not in {entry.event for entry in entries[:last]}  # nobody was hung up on to make room
    assert json.loads(summary.read_text())["timeouts"] == 9
    assert {entry.key for entry in server.received()}.__len__() == 9


def test_time_outs_are_learned_from_a_hundred_answers(source: Path, server: Ledger) -> None:
    write_lines(
        source, [line("hangs", {"how": "hang"}, {}), *(line(name, {"after": 0.01}) for name in names(150))]
    )
    started = time.monotonic()
    assert run(source, server.url, "--limit", "requests=500/s:burst=50").code == 0
    assert 3 < time.monotonic() - started < 15
    settled(source, ["hangs", *names(150)])


def test_a_fixed_time_out_is_an_error_of_the_call(source: Path, server: Ledger) -> None:
    write_lines(source, [line("hangs", {"how": "hang"}), line("fine")])
    ran = run(source, server.url, "--timeout", "0.3", "--max-attempts", "1", "--limit", FAST)
    assert ran.code == 1
    [failed] = read(errors(source))
    assert failed["response"] is None
    assert failed["error"]["code"] == "timeout"


def test_nobody_listens(source: Path) -> None:
    plain_lines(source, 3)
    ran = run(source, "http://127.0.0.1:9", "--max-attempts", "1")
    assert ran.code == 1
    assert {item["error"]["code"] for item in read(errors(source))} == {"connect_failed"}


def test_concurrency_is_the_most_in_flight(source: Path, own_server: Ledger) -> None:
    server = own_server
    write_lines(source, [line(name, {"after": 0.1}) for name in names(30)])
    assert run(source, server.url, "--concurrency", "3", "--limit", FAST).code == 0
    assert max(entry.open for entry in server.received()) == 3


# Order


def test_ordered_results_stand_in_the_order_of_the_input(source: Path, server: Ledger) -> None:
    lines: list[Any] = [
        line(name, {"after": 0.3 if n % 7 == 0 else 0.01}) for n, name in enumerate(names(60))
    ]
    lines[10] = line("id-10", FAILS, {})
    lines[20:20] = ["", "nonsense"]
    write_lines(source, lines)
    assert run(source, server.url, "--ordered", "--limit", "concurrency=20").code == 1
    assert ids(results(source)) == [name for name in names(60) if name != "id-10"]
    assert run(source, server.url, "--ordered", "--limit", "concurrency=20").code == 1
    assert ids(results(source)) == names(60)
    assert server.count() == 61


def test_ordered_survives_interrupts_kills_and_faults(source: Path, server: Ledger) -> None:
    bad: list[dict[str, Any]] = [{"status": 500}, {"how": "reset"}, {"text": "{"}, {"how": "close"}]
    write_lines(
        source,
        [
            line(name, *([bad[n % 4]] if n % 5 == 0 else []), {"after": 0.02})
            for n, name in enumerate(names(300))
        ],
    )
    options = ["--ordered", "--limit", "concurrency=10"]
    for number, enough in ((signal.SIGINT, 60), (signal.SIGKILL, 150), (signal.SIGTERM, 230)):
        with Started(source, server.url, *options) as going:
            wait_for_calls(server, enough)
            going.signal(number)
            going.process.wait(20)
        found = ids(results(source))
        assert found == names(len(found))
    assert run(source, server.url, *options).code == 0
    assert ids(results(source)) == names(300)


@pytest.mark.parametrize("first", [["--ordered"], []])
def test_changing_to_ordered_or_back_loses_nothing(source: Path, server: Ledger, first: list[str]) -> None:
    write_lines(source, [line("slow", FAILS, {}), *(line(name) for name in names(20))])
    assert run(source, server.url, *first).code == 1
    for options in ([] if first else ["--ordered"], first):
        assert run(source, server.url, *options).code == 0
        assert sorted(ids(results(source))) == sorted(["slow", *names(20)])
    assert server.count() == 22


def test_a_new_start_forgets_what_an_ordered_run_has_left(source: Path, server: Ledger) -> None:
    plain_lines(source, 5)
    assert run(source, server.url, "--ordered").code == 0
    plain_lines(source, 5, start=100)
    assert run(source, server.url, "--fresh").code == 0
    assert run(source, server.url, "--ordered").code == 0
    assert ids(results(source)) == names(5, 100)


# A full disk


def test_a_disk_that_is_full_is_told_and_loses_nothing(source: Path, server: Ledger) -> None:
    plain_lines(source, 400)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))

    done = subprocess.run(
        command(source, server.url, "--limit", FAST),
        capture_output=True,
        timeout=60,
        env=environment(),
        check=False,
        preexec_fn=small_files,
    )
    told = done.stderr.decode()
    assert done.returncode == 1
    assert "Traceback" not in told
    assert results(source).name in told
    assert "goes on" in told
    kept = ids(results(source))
    assert 0 < len(kept) < 400
    assert len(set(kept)) == len(kept)
    assert run(source, server.url, "--limit", FAST).code == 0
    settled(source, names(400))


def test_a_small_file_system_that_is_full(tmp_path: Path, server: Ledger) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("this user may not mount")
    try:
        source = plain_lines(tmp_path / "in.jsonl", 800)
        output = disk / "out.jsonl"
        options = ["--output", str(output), "--errors", str(tmp_path / "e"), "--limit", FAST]
        ran = run(source, server.url, *options)
        assert ran.code == 1
        assert "No space" in ran.err
        kept = ids(output)
        assert 0 < len(kept) < 800
        ran = run(source, server.url, *options)  # still full
        assert ran.code == 1
        assert set(kept) <= set(ids(output))
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert run(source, server.url, *options).code == 0
        assert sorted(ids(output)) == sorted(names(800))
    finally:
        subprocess.run(["umount", disk], check=True)


# Keys


LEAKY: list[dict[str, Any]] = [
    {"how": "echo"},
    {"status": 401, "how": "echo"},
    {"status": 301, "headers": {"location": f"/x?key={SECRET}"}},
    {"status": 400, "json": {"error": {"message": f"Incorrect API key provided: {SECRET}", "code": SECRET}}},
    {"status": 400, "text": f"key {SECRET}", "headers": {"content-type": "text/plain"}},
    {"raw": f"HTTP/1.1 {SECRET} no\r\n\r\n"},
    {"raw": "HELLO\r\n\r\n"},
]


@pytest.mark.parametrize(
    "way",
    [[], ["--api-key-header", "x-api-key"], ["--api-key-query", "key"]],
    ids=["bearer", "header", "query"],
)
def test_the_key_arrives_and_shows_nowhere(source: Path, server: Ledger, way: list[str]) -> None:
    write_lines(
        source, [line("ok"), *(line(f"id-{n}", answer) for n, answer in enumerate(LEAKY)), "bad line"]
    )
    summary = source.with_name("summary.json")
    options = ["--api-key-env", "THE_KEY", "--max-attempts", "1", "--summary-json", str(summary), *way]
    ran = run(source, server.url, *options, "--limit", "requests=1000/s:burst=1", "--timeout", "5")
    assert ran.code == 1
    [echo] = [item for item in read(results(source)) if item["custom_id"] == "id-0"]
    assert "***" in echo["response"]["body"]["head"]
    head = echo["response"]["body"]["head"]
    assert re.search(
        r"[?&]key=\*\*\*" if "key" in way else r"x-api-key: \*\*\*" if way else r"Bearer \*\*\*", head, re.I
    )
    shown = ran.out + ran.err
    for path in source.parent.iterdir():
        if path.is_file() and path != source:
            shown += path.read_bytes().decode("latin-1")
    for secret in (SECRET, "sk-Test%2F5%2Becret%3DKey", "sk-Test%2f5", "sk-Test\\/5"):
        assert secret not in shown


def test_headers_of_the_caller_go_before_ours_once_each(source: Path, server: Ledger) -> None:
    write_lines(source, [line("a", {"how": "echo"})])
    options = [
        "--header",
        "X-Team: one",
        "--header",
        "user-agent: mine",
        "--header",
        "content-type: application/x+json",
    ]
    assert run(source, server.url, *options, "--api-key-env", "THE_KEY").code == 0
    [item] = read(results(source))
    head = item["response"]["body"]["head"].lower().split("\r\n")
    for name, value in (("x-team", "one"), ("user-agent", "mine"), ("content-type", "application/x+json")):
        assert [text for text in head if text.startswith(name + ":")] == [f"{name}: {value}"]


# Usage


@pytest.mark.parametrize(
    "options",
    [
        ["--limit", "requests=5"],
        ["--limit", "requests=5/fortnight"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timeout", "soon"],
        ["--deadline", "0"],
        ["--deadline", "nan"],
        ["--max-transit", "nan"],
        ["--max-attempts", "0"],
        ["--concurrency", "0"],
        ["--max-tokens", "-1"],
        ["--header", "no colon"],
        ["--header", "X: a\r\nInjected: b"],
        ["--header", "bad name: b"],
        ["--template", "no columns and no file"],
        ["--template", '{"messages": ['],
        ["--template", "{text}"],
        ["--start", "half"],
        ["--store", "nowhere://"],
        ["--progress", "loud"],
        ["--api-key-env", "NOT_THERE"],
        ["--api-key-query", "key"],
        ["--header", "Idempotency-Key: mine"],
        ["--output", "in.jsonl"],
        ["--output", "x.jsonl", "--errors", "x.jsonl"],
        ["--errors", "in.jsonl"],
        ["--output", "no/such/folder/out.jsonl"],
        ["--base-url", "ftp://x"],
        ["--base-url", "http://u:p@x"],
        ["--unknown"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2_and_sends_nothing(
    source: Path, server: Ledger, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_lines(source, 1)
    monkeypatch.chdir(source.parent)
    done = CliRunner().invoke(cli.run, ["in.jsonl", "--base-url", server.url, *options])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    assert done.stderr
    assert server.count() == 0
    assert len(source.read_text().splitlines()) == 1


def test_an_input_that_is_not_there_or_no_file(tmp_path: Path, server: Ledger) -> None:
    assert run(tmp_path / "missing.jsonl", server.url).code == 2
    assert run(tmp_path, server.url).code == 2
    assert run("-", server.url, stdin="").code == 2
    assert run("-", server.url, "--ordered", "--output", str(tmp_path / "o"), stdin="").code == 2


def test_endless_times_are_times(source: Path, server: Ledger) -> None:
    plain_lines(source, 2)
    assert run(source, server.url, "--timeout", "1e9", "--deadline", "1e9").code == 0


# Views and summaries


def test_the_summary_says_what_happened(source: Path, server: Ledger) -> None:
    write_lines(source, [*map(line, names(30)), line("f", FAILS), line("r", {"status": 500}, {}), "bad"])
    summary = source.with_name("summary.json")
    limits = [
        "--limit",
        "requests=100/s:burst=10",
        "--limit",
        "tokens=100k/s:burst=50k",
        "--limit",
        "concurrency=5",
    ]
    options = ["--start", "full", "--max-transit", "0.05", "--max-tokens", "5", "--store", "memory://"]
    ran = subprocess.run(
        [
            *command(source, server.url, *limits, *options, "--summary-json", str(summary)),
            "--progress",
            "log",
        ],
        capture_output=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert ran.returncode == 1
    facts = json.loads(summary.read_text())
    assert (facts["total"], facts["succeeded"], facts["failed"], facts["malformed_lines"]) == (33, 31, 1, 1)
    assert (facts["requests"], facts["retries"], facts["refused"], facts["timeouts"]) == (33, 1, 0, 0)
    assert facts["errors"] == {"overloaded": 1, "caller": 1}
    assert facts["max_transit_seconds"] == 0.05
    assert facts["max_transit_exceeded"] == 0
    assert [limit["name"] for limit in facts["limits"]] == ["requests/s", "tokens/s", "concurrency"]
    assert facts["latency"]["p50"] <= facts["latency"]["p99"] <= facts["latency"]["max"]
    assert all(math.isfinite(limit["used"]) for limit in facts["limits"])
    told = ran.stderr.decode()
    assert "31 succeeded, 2 failed" in told
    assert "33 of 33 done" in told


def test_the_live_view_draws_itself(source: Path, server: Ledger) -> None:
    write_lines(source, [line(name, {"after": 0.1}) for name in names(20)])
    ran = subprocess.run(
        [*command(source, server.url, "--limit", "requests=20/s:burst=5"), "--progress", "rich"],
        capture_output=True,
        timeout=60,
        env=environment(COLUMNS="100", TERM="xterm"),
        check=False,
    )
    assert ran.returncode == 0
    assert b"20 of 20" in ran.stderr
    assert b"requests/s" in ran.stderr


def test_help_tells_of_every_option_and_exit_code() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "headgate", "run", "--help"], capture_output=True, check=True
    ).stdout
    for option in (
        b"--base-url --limit --output --errors --store --start --api-key-env --api-key-header "
        b"--api-key-query --header --template --model --max-tokens --id-column --max-attempts --timeout "
        b"--max-transit --concurrency --deadline --ordered --fresh --progress --summary-json".split()
    ):
        assert option in told
    assert b"130 interrupted" in b" ".join(told.split())
