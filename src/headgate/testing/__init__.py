"""For tests of programs that use headgate: a clock that only moves when told, and time that costs nothing.

With headgate installed, pytest offers three fixtures: ``fake_clock`` (a :class:`FakeClock`), ``shared_store``
(the URL of a store that processes can share) and ``sim`` (rate-limited servers, see
``headgate.testing.simulator``). ::

    from headgate import Limiter
    from headgate.stores.memory import MemoryStore


    def test_ten_calls_take_nine_minutes(fake_clock):
        limiter = Limiter("requests=1/min:burst=1:start=full", store=MemoryStore(fake_clock))

        async def ten_calls():
            for _ in range(10):
                async with limiter.permit():
                    ...

        fake_clock.run(ten_calls())  # returns at once
        assert 9 * 60 <= fake_clock.elapsed_seconds < 9 * 60 + 1
"""

from headgate.testing.clock import FakeClock
from headgate.testing.virtual_loop import Stuck, VirtualLoop

__all__ = ["FakeClock", "Stuck", "VirtualLoop"]
