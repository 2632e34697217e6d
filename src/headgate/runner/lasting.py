"""What a process has to know of earlier ones before it sends: limits that outlive it, and the last starts.

They stand in the checkpoint. What is kept is never less than what was sent, whenever the process dies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headgate.keeping import Keeper
from headgate.limiter import Limiter
from headgate.runner.call import Call
from headgate.runner.interval import Spacing

if TYPE_CHECKING:
    from headgate.runner.checkpoint import Checkpoint


class Lasting:
    """Keeps the state of an interval, and of a limiter if it is the runner's own.

    Args:
        own: whether it is.
    """

    def __init__(
        self, limiter: Limiter, spacing: Spacing | None, checkpoint: Checkpoint, *, own: bool
    ) -> None:
        self._limiter = limiter
        self._keeper = Keeper(limiter)
        self._keeps = own and self._keeper.needed
        self._spacing = spacing
        self._checkpoint = checkpoint
        if self._keeps:
            self._keeper.restore(checkpoint.load_state("limits") or {})
        if spacing is not None:
            now = limiter.store.now()
            walls: list[int] = checkpoint.load_state("starts") or []
            spacing.load([now.elapsed_us - max(now.wall_us - wall, 0) for wall in walls])

    @property
    def needed(self) -> bool:
        """Whether there is anything to keep."""
        return self._keeps or self._spacing is not None

    def started(self, call: Call[Any]) -> None:
        """A call is about to be sent."""
        if self._keeps:
            names = (limit.name for limit in self._limiter.limits)
            if self._keeper.granted(dict(zip(names, call.costs, strict=True))):
                self._checkpoint.save_state("limits", self._keeper.save(final=False))
        if self._spacing is not None:
            now = self._limiter.store.now()
            walls = [now.wall_us - (now.elapsed_us - start) for start in self._spacing.dump()]
            self._checkpoint.save_state("starts", walls)

    def rest(self) -> None:
        """Nothing is sent for the moment: what is kept may be exact."""
        if self._keeps:
            self._checkpoint.save_state("limits", self._keeper.save(final=True))
