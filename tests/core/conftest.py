"""Properties are checked on the same examples every time; HEADGATE_EXAMPLES=1000 checks more, at random."""

import os

from hypothesis import HealthCheck, settings

_UNSUITED = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "core", deadline=None, derandomize=True, max_examples=100, suppress_health_check=_UNSUITED
)
settings.register_profile(
    "core-thorough",
    deadline=None,
    max_examples=int(os.environ.get("HEADGATE_EXAMPLES", "1000")),
    suppress_health_check=_UNSUITED,
)
settings.load_profile("core-thorough" if "HEADGATE_EXAMPLES" in os.environ else "core")
