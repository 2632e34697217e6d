"""No deadline for single examples: a loaded machine is no fault of the code."""

from hypothesis import settings

settings.register_profile("simulator", deadline=None)
settings.load_profile("simulator")
