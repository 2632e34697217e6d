"""Rate-limited API servers that judge their callers: for tests, demonstrations and measurements.

    async with SimulatedServer(["requests=20/s:burst=5"], latency="200ms") as sim: ...

It shares no code with the rest of headgate, so that it can judge it. `rules` and `model` are the limiters,
in virtual time and without I/O; `server` puts them behind real sockets.
"""

from headgate.simulator.model import ServerModel, Verdict
from headgate.simulator.server import SimulatedServer, ThreadedServer
from headgate.simulator.spec import LimitSpec, SpecError, make_rule, parse_limit
from headgate.simulator.tally import LimitReport, Tally

__all__ = [
    "LimitReport",
    "LimitSpec",
    "ServerModel",
    "SimulatedServer",
    "SpecError",
    "Tally",
    "ThreadedServer",
    "Verdict",
    "make_rule",
    "parse_limit",
]
