"""The floor for `headgate run`: the rows of a file POSTed by a bare aiohttp loop, which keeps nothing.

python -m benchmarks.bare ROWS URL CONNECTIONS
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.sending import Post, run_in_loop, send_all


async def once(post: Post) -> None:
    await post()


if __name__ == "__main__":
    rows, url, connections = sys.argv[1:]
    run_in_loop(send_all(url, Path(rows), int(connections), once))
