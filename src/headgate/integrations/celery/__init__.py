"""Celery: a task that may not run yet leaves its worker's slot and waits in the limiter's store.

::

    limiter = Limiter("requests=500/min", key="openai", store="redis://localhost:6379/0")

    @app.task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=True)
    @limiter.limited(cost=lambda self, prompt: {"tokens": len(prompt) // 4})
    def ask(self, prompt): ...

That is all there is to do: a function that is limited knows when it runs as the body of a task. One of all
workers lets out what is parked, in order and just in time (``releaser``); any may run it (``tasks``).
"""

from headgate.integrations.celery.releaser import attend
from headgate.integrations.celery.tasks import PARKED, Attempt, attempt_of, run

__all__ = ["PARKED", "Attempt", "attempt_of", "attend", "run"]
