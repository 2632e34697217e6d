"""The scenarios, shortened: nothing is refused, lost or done twice. Utilisation is printed, not judged."""

import pytest

from tests.strict.scenarios import SCENARIOS, Bench, table, why_not

SHORT = Bench(share=0.15)
SANITY = 0.2  # far below any plan: only a run that hardly moved fails


@pytest.fixture(scope="module", autouse=True)
def _command_line() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.mark.scenarios
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_refused(name: str) -> None:
    row = SCENARIOS[name](SHORT)
    print(f"\n{table([row])}")
    assert row.exit_code == 0, row.complaint
    assert row.disagreements == 0, row.report["first_disagreements"]
    assert (row.lost, row.twice, row.written) == (0, 0, row.calls)
    if row.refused and row.machine_too_slow:
        pytest.skip(f"this machine stalled the server for {row.stall_ms} ms, longer than any plan can bear")
    assert row.refused == 0, row.report["refusals"]
    assert max(used for used in (row.empty_start, row.full_start) if used is not None) > SANITY
