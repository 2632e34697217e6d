"""The rules, pure: limits, costs and instants in, decisions out.

Nothing here reads a clock, sleeps, draws a random number or does I/O, and nothing here knows of
keys, stores, threads, HTTP or providers.
"""
