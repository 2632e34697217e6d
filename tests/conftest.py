"""For all tests: Ctrl-C means what it says, however the tests were started."""

import signal

# A shell that starts a job in the background has it ignore SIGINT, and its children inherit that; tests
# that interrupt themselves or their children would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
