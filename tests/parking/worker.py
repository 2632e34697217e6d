"""A worker to be killed: lets tasks out and has them leave, for as long as it lives.

``python worker.py URL FILE``: for each task that left, its id is added to the file as a line.
"""

from __future__ import annotations

import os
import sys
import time

from headgate.parking import Arrival, lot_of
from headgate.stores.base import open_store


def main(url: str, path: str) -> None:
    lot = lot_of(open_store(url))
    me = str(os.getpid())
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        taken = lot.take("k", me, 3, 300_000)
        for task in taken.parked:
            time.sleep(0.002)
            if lot.enter("k", task.id, task.release) is not Arrival.GO:
                continue
            if task.place % 5 == 0 and task.release == 1:  # it may not run yet after all
                lot.park("k", task.id, task.release, task.body, task.costs, task.place)
            elif lot.leave("k", task.id, task.release):
                os.write(file, f"{task.id} {task.body.decode()}\n".encode())
        if not taken.parked:
            time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
