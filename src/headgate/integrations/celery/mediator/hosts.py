"""Which hosts are called back: told by whoever calls one, known to the main process of every worker.

Only the main process of a worker lets out what is parked, and callbacks go to hosts that no settings name. So
their names lie in the store, in a lot of their own, one entry for each host and day.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from headgate.errors import HeadgateError
from headgate.integrations.celery.releaser import attend, unattend
from headgate.parking import lot_of

if TYPE_CHECKING:
    from headgate.limiter import Limiter
    from headgate.stores.base import Store

log = logging.getLogger("headgate")

KEY = "mediator-callback-hosts"
DAY_SECONDS = 86_400
KEPT_DAYS = 2
"""A name that nobody has told since is forgotten, unless something waits for that host."""
LOOK_SECONDS = 1.0
MOST = 100_000


class Hosts:
    """The names in a store.

    Args:
        limiter: makes a host's limiter.
    """

    def __init__(self, store: Callable[[], Store], limiter: Callable[[str], Limiter]) -> None:
        self._store = store
        self._limiter = limiter
        self._told: set[str] = set()
        self._attended: dict[str, Limiter] = {}
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, host: str) -> None:
        """Something may wait for this host.

        Raises:
            StoreUnavailable
        """
        entry = f"{_today()}/{host}"
        if entry not in self._told:
            lot_of(self._store()).park(KEY, entry, 0, b"", ())
            self._told.add(entry)

    def start(self) -> None:
        """Attend to those that are told, from now on."""
        self._thread = threading.Thread(target=self._serve, name="headgate-callback-hosts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        if self._thread is not None:
            self._thread.join(5)

    def _serve(self) -> None:
        failed = False
        while not self._ends.wait(LOOK_SECONDS):
            try:
                self._look()
                failed = False
            except (HeadgateError, OSError) as error:
                if not failed:
                    log.warning("which hosts are called back cannot be seen now: %s", error)
                failed = True

    def _look(self) -> None:
        lot = lot_of(self._store())
        named = set()
        for entry in lot.peek(KEY, MOST).parked:
            day, _, host = entry.id.partition("/")
            if host not in self._attended:
                self._attended[host] = self._limiter(host)
                attend(self._attended[host])
            if int(day) < _today() - KEPT_DAYS:
                seen = lot.peek(self._attended[host].key)
                if not seen.waiting and not seen.out:
                    lot.drop(KEY, entry.id)
                    continue
            named.add(host)
        for host in self._attended.keys() - named:
            unattend(self._attended.pop(host))


def _today() -> int:
    return int(time.time() // DAY_SECONDS)
