import subprocess
import sys
from pathlib import Path

from headgate.testing import FakeClock

TEST_OF_A_USER = """
from headgate import Limiter
from headgate.stores.memory import MemoryStore


def test_ten_calls_take_nine_minutes(fake_clock):
    limiter = Limiter("requests=1/min:burst=1:start=full", store=MemoryStore(fake_clock))

    async def ten_calls():
        for _ in range(10):
            async with limiter.permit():
                ...

    fake_clock.run(ten_calls())
    assert 9 * 60 <= fake_clock.elapsed_seconds < 9 * 60 + 1


def test_workers_share(shared_store):
    one, other = (Limiter("concurrency=1", key="k", store=shared_store) for _ in range(2))
    with one.permit():
        assert other.used() == {"concurrency": 1}


def test_servers(sim):
    assert sim("requests=20/s:burst=5").url.startswith("http://")
"""

LOADED = "import sys, headgate.testing.plugin; print(*sorted(sys.modules))"


def test_offers_its_fixtures_to_every_user(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(TEST_OF_A_USER)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "3 passed" in ran.stdout, ran.stdout


def test_fixtures_are_found_by_name(fake_clock: FakeClock) -> None:
    assert type(fake_clock) is FakeClock


def test_loading_it_loads_no_simulator() -> None:
    ran = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "headgate.testing.plugin" in loaded
    assert not {"aiohttp", "headgate.simulator"} & loaded
