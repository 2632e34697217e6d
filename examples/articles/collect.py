"""Collect articles that every machine with Python has, and write them as a file of summary requests.

An article is the documentation of one thing: a topic of the language reference, or a module, class or
function of the standard library. Sources are parsed, not imported, so nothing of them runs. Compiled
modules have no source: those on a list of harmless ones are imported. This file knows nothing of headgate.

    python -m examples.articles.collect build/articles/requests.jsonl --count 1000
"""

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

MIN_CHARS = 800
MODEL = "extractive-1"
MAX_TOKENS = 120
INSTRUCTION = "Summarise this documentation in at most three sentences."

# Not documentation, not always installed, or not the library's own.
SKIPPED = {
    *("test", "tests", "pydoc_data", "__pycache__"),
    *("idlelib", "lib2to3", "tkinter", "turtle.py", "turtledemo"),
    *("dist-packages", "ensurepip", "site-packages"),
}

# Importing these changes nothing; those that a platform lacks are passed over.
COMPILED = """
    builtins sys nt posix time math cmath itertools array binascii mmap select signal unicodedata zlib
    _asyncio _bz2 _codecs _collections _contextvars _csv _datetime _decimal _elementtree _functools _hashlib
    _heapq _io _lzma _operator _pickle _random _socket _sqlite3 _ssl _struct _thread _zoneinfo
""".split()

# The break of a wrapped line: after a long one, before a word that does not look like code.
WRAP = re.compile(r"""(?<=[^\n]{45})\n *(?=[\w("*'’“-]+[ ,.;:)](?!=))""")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class TooFewArticles(Exception):
    """This Python has fewer articles than were asked for."""


def collect(count: int, max_chars: int) -> dict[str, str]:
    """Return `count` articles by name, each of `MIN_CHARS` to `max_chars` characters, no two equal.

    The same Python gives the same articles in the same order. What is longer than `max_chars` is cut into
    parts; the second one is called `NAME/2`.
    """
    articles: dict[str, str] = {}
    seen: set[str] = set()
    for name, text in read_all():
        for number, part in enumerate(split(WRAP.sub(" ", text), max_chars), start=1):
            if len(articles) == count:
                return articles
            part_name = name if number == 1 else f"{name}/{number}"
            if len(part) >= MIN_CHARS and part not in seen and part_name not in articles:
                articles[part_name] = part
                seen.add(part)
    if len(articles) < count:
        raise TooFewArticles(
            f"expected {count} articles of {MIN_CHARS} characters or more, found {len(articles)} in "
            f"{sysconfig.get_path('stdlib')} (a smaller --max-chars cuts long ones into more parts)"
        )
    return articles


def split(text: str, max_chars: int) -> Iterator[str]:
    """Cut a text into parts of `max_chars` at most, after a paragraph if possible, else a line or a word."""
    while len(text) > max_chars:
        ends = (text.rfind(mark, max_chars // 2, max_chars) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > 0), max_chars)
        yield text[:end].rstrip()
        text = text[end:].lstrip()
    yield text


def read_all() -> Iterator[tuple[str, str]]:
    """Yield the name and text of every article, however long; some are equal."""
    for topic, text in sorted(topics.items()):
        yield f"topic:{topic}", text.strip()
    yield from read_sources(Path(sysconfig.get_path("stdlib")))
    yield from read_compiled()


def write_article(docstring: str | None, members: Iterable[tuple[str, str | None]]) -> str:
    """Join a docstring with the (signature, docstring) of what belongs to it.

    A member whose docstring is long enough is an article of its own, so it is left out here.
    """
    told = [f"{signature}\n{text}" for signature, text in members if text and len(text) < MIN_CHARS]
    return "\n\n".join([docstring or "", *told]).strip()


def read_sources(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the articles in the Python sources below `root`."""
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if SKIPPED.isdisjoint(place.parts):
            with warnings.catch_warnings(action="ignore"):  # of escapes in old string literals
                tree = ast.parse(path.read_bytes())
            yield from read_node(".".join(place.with_suffix("").parts).removesuffix(".__init__"), tree)


def read_node(name: str, node: ast.Module | ast.ClassDef | Function) -> Iterator[tuple[str, str]]:
    """Yield the article of a module, class or function, then those of what it defines."""
    docstring = ast.get_docstring(node)
    if isinstance(node, Function):
        yield f"function:{name}", docstring or ""
        return
    functions = [child for child in node.body if isinstance(child, Function)]
    members = [(f"{f.name}({ast.unparse(f.args)})", ast.get_docstring(f)) for f in functions]
    kind = "module" if isinstance(node, ast.Module) else "class"
    yield f"{kind}:{name}", write_article(docstring, members)
    for child in node.body:
        if isinstance(child, Function | ast.ClassDef):
            yield from read_node(f"{name}.{child.name}", child)


def read_compiled() -> Iterator[tuple[str, str]]:
    """Yield the articles of the compiled modules and their classes."""
    for name in COMPILED:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        yield f"module:{name}", read_object(module, inspect.isbuiltin)
        for class_name, value in vars(module).items():
            if inspect.isclass(value):
                yield f"class:{name}.{class_name}", read_object(value, inspect.isroutine)


def read_object(owner: Any, is_member: Callable[[object], bool]) -> str:
    """Return the article of a compiled module or class."""
    members = [(name, inspect.getdoc(value)) for name, value in vars(owner).items() if is_member(value)]
    return write_article(inspect.getdoc(owner), members)


def write_request(name: str, article: str) -> str:
    """Return one line of an OpenAI batch file."""
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": article}]
    body = {"model": MODEL, "max_tokens": MAX_TOKENS, "messages": messages}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


def main() -> None:
    """Collect, write, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="the file to write, one JSON request a line")
    parser.add_argument("--count", type=int, default=1000, help="articles wanted (default: %(default)s)")
    parser.add_argument(
        "--max-chars", type=int, default=2400, help="cut longer articles into parts (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.max_chars < 2 * MIN_CHARS:
        parser.error(f"--max-chars: expected {2 * MIN_CHARS} or more, got {options.max_chars}")
    try:
        articles = collect(options.count, options.max_chars)
    except TooFewArticles as error:
        sys.exit(f"collect: {error}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = (write_request(name, article) + "\n" for name, article in articles.items())
    options.output.write_text("".join(lines), encoding="utf-8")
    size = sum(map(len, articles.values()))
    print(f"{len(articles):,} articles, {size:,} characters: {options.output}")


if __name__ == "__main__":
    main()
