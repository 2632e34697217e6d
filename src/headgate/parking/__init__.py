"""Where tasks of a job system wait, in order, that may not run yet; one of many workers lets them out."""

from headgate.parking.base import (
    BODY_BYTES,
    KEEP_SECONDS,
    RELEASER_SECONDS,
    Arrival,
    Lot,
    Parked,
    Taken,
    lot_of,
)

__all__ = ["BODY_BYTES", "KEEP_SECONDS", "RELEASER_SECONDS", "Arrival", "Lot", "Parked", "Taken", "lot_of"]
