import gc
from urllib.request import urlopen

from headgate.simulator import ThreadedServer
from headgate.testing.simulator import StartServer, sim

__all__ = ["sim"]  # a fixture is used by its name

started: list[ThreadedServer] = []


def test_starts_as_many_servers_as_asked(sim: StartServer) -> None:
    one, two = sim("requests=20/s:burst=5", "concurrency=3", latency="1ms"), sim()
    for server in (one, two):
        urlopen(server.url + "/echo").close()
        assert server.stats()["accepted"] == 1
    assert len(one.stats()["limits"]) == 2
    started.extend((one, two))


def test_closes_them_when_the_test_ends() -> None:
    gc.collect()
    for server in started:
        try:
            urlopen(server.url + "/echo").close()
        except OSError:
            continue
        raise AssertionError(f"{server.url} still answers")
