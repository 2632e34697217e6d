"""What limiters of this process do, as metrics: for OpenTelemetry or Prometheus. ::

    from headgate import Limiter, metrics

    limiter = Limiter("requests=500/min:burst=50", key="openai")
    metrics.instrument(limiter)  # OpenTelemetry, by the provider that the program has set
    metrics.instrument(limiter, registry=prometheus_client.REGISTRY)  # Prometheus

Names, units and labels stand in ``table``. Figures of the whole fleet that draws on a key come from its
store: see ``headgate top`` and :mod:`headgate.operate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headgate.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

    from headgate.limiter import Limiter


def instrument(
    limiter: Limiter,
    *,
    meter_provider: MeterProvider | None = None,
    registry: CollectorRegistry | None = None,
) -> Callable[[], None]:
    """Count what a limiter does from now on; returns how to stop that.

    Limiters of the same key are counted together; to do it twice counts once. What has been counted stays
    after the stop.

    Args:
        limiter: whose permits are counted.
        meter_provider: of OpenTelemetry; None for the global one, unless there is a registry.
        registry: of Prometheus, such as ``prometheus_client.REGISTRY``; None for OpenTelemetry.

    Raises:
        ConfigurationError: the library is not installed, or both are given.
    """
    if registry is not None:
        if meter_provider is not None:
            raise ConfigurationError("expected a meter_provider or a registry: instrument twice for both")
        try:
            from headgate.metrics import prometheus
        except ImportError as error:
            raise _missing("prometheus", error) from error
        return prometheus.instrument(limiter, registry)
    try:
        from headgate.metrics import otel
    except ImportError as error:
        raise _missing("otel", error) from error
    return otel.instrument(limiter, meter_provider)


def text(registry: CollectorRegistry | None = None) -> str:
    """What the limiters of a Prometheus registry have done, in Prometheus' text format, and nothing else.

    Args:
        registry: None for ``prometheus_client.REGISTRY``.

    Raises:
        ConfigurationError: prometheus-client is not installed.
    """
    try:
        from headgate.metrics import prometheus
    except ImportError as error:
        raise _missing("prometheus", error) from error
    return prometheus.text(registry)


def _missing(extra: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(f"{error}; pip install 'headgate[{extra}]' brings it")
