"""One file per rule of a server, and how to stay under it.

A rule is an immutable object; its state is a plain list of integers that a store keeps. Every method takes
the instant; none reads a clock. All rules answer the same questions:

* ``fresh(now)``: the state at first use.
* ``advance(state, at, alive)``: let time pass up to steady instant ``at``. The others may then rely on it.
* ``admits(state, cost)``: does it fit now?
* ``opens_at(state, cost, at, alive)``: earliest instant, from ``at`` on, at which it would.
* ``firm(state, cost, opens)``: does that stay so if calls are answered as they were reserved?
* ``take(state, cost, at)``: charge it; returns the marks that the settlement needs.
* ``settle(state, cost, marks, outcome, charge, at)``: the answer came, or none will.
* ``read(state, cost, marks, reading, granted_at, at)``: what the answer said of this limit.
* ``refused(state, cost, at, ...)``: the server refused a call that this rule had let through.
"""
