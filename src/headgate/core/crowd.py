"""Who draws on a key together: clients with their leases, their places in line, and whose turn it is.

A *client* is a process (or whatever asks a shared store under one name). It is there as long as it is heard
of within its lease; when the lease lapses, what it held is given back, and its place in line is gone.

A client has a line for each *class* (interactive, normal, bulk). Classes share the limits by their shares,
clients of a class share equally: the next permit goes to the class, and in it to the client, that has been
served least so far among those who wait (start-time fair queueing). What was served is counted in the time
that the slowest limit takes to bring it back, so calls of different costs compare. Whoever did not wait for a
while starts level with the others and cannot save up turns.

A client is told to come at an instant. If it is late for its turn by more than a moment, its turn is passed
over: nobody waits for the dead.

Plain integers in lists, like all state. This module knows costs and instants (steady time), not limits.
"""

from __future__ import annotations

from typing import TypeAlias

from headgate.core.model import NEVER, Costs

INTERACTIVE, NORMAL, BULK = CLASSES = range(3)
CLASS_NAMES = ("interactive", "normal", "bulk")
SHARES = (50, 35, 15)

LATE_US = 20_000
"""A turn is passed over when whoever's it is has not come so long after the instant that it was told."""
SLACK_US = 2_000
"""One may be served so much more than another, in time of the limit: turns of more than one call at high
rates."""

GHOST = "?"
"""Stands for all who may hold something that nobody knows of, after a state was lost."""

Ticket: TypeAlias = list[int]
"""[waiting, served, due, weight, costs of the head …]: how many wait, what was served (µs of the limit),
until when it was told to wait, what the head weighs (likewise µs)."""
WAITING, SERVED, DUE, WEIGHT, HEAD = range(5)


def no_ticket(rules: int, served: int = 0) -> Ticket:
    """Nobody waits."""
    return [0, served, 0, 1] + [0] * rules


class Member:
    """One client."""

    __slots__ = ("adopted", "epoch", "flying", "pinned", "sequence", "tickets", "until")

    def __init__(
        self,
        until: int,
        epoch: int,
        sequence: int,
        flying: int,
        pinned: list[int],
        tickets: list[Ticket],
        adopted: int = 0,
    ) -> None:
        self.until = until  # end of its lease
        self.epoch = epoch  # tells this life of the client from an earlier one
        self.sequence = sequence  # of the last settlement that was booked
        self.flying = flying  # its calls that have not ended
        self.pinned = pinned  # units on each rule that only a settlement gives back
        self.tickets = tickets  # one for each class
        self.adopted = adopted  # 1 if what it holds from an earlier life has been counted in this one

    def dump(self) -> list[object]:
        return [
            self.until,
            self.epoch,
            self.sequence,
            self.flying,
            self.pinned,
            self.tickets,
            self.adopted,
        ]


class Crowd:
    """All clients of a key."""

    __slots__ = ("epochs", "floors", "members", "served", "shares")

    def __init__(
        self,
        members: dict[str, Member],
        epochs: int,
        shares: list[int],
        served: list[int],
        floors: list[int],
    ) -> None:
        self.members = members
        self.epochs = epochs  # how many lives there were
        self.shares = shares  # of each class
        self.served = served  # of each class, over its share
        self.floors = floors  # of each class: where a newcomer starts

    def dump(self) -> list[object]:
        members = [[name, *member.dump()] for name, member in self.members.items()]
        return [members, self.epochs, self.shares, self.served, self.floors]


def fresh_crowd(at: int) -> Crowd:
    """Nobody is there. Lives are counted on from the instant, so that none is taken for one of a state that
    was lost.
    """
    return Crowd({}, max(at, 0), list(SHARES), [0] * len(SHARES), [0] * len(SHARES))


def load_crowd(data: list[object]) -> Crowd:
    """What :meth:`Crowd.dump` gave."""
    members, epochs, shares, served, floors = data
    loaded = {name: Member(*parts) for name, *parts in members}  # type: ignore[attr-defined]  # JSON
    return Crowd(loaded, epochs, shares, served, floors)  # type: ignore[arg-type]


def enter(crowd: Crowd, client: str, rules: int, at: int, lease_us: int) -> Member:
    """A client is heard of."""
    member = crowd.members.get(client)
    if member is None:
        crowd.epochs += 1
        tickets = [no_ticket(rules) for _ in CLASSES]
        member = crowd.members[client] = Member(0, crowd.epochs, 0, 0, [0] * rules, tickets)
    member.until = at + lease_us
    return member


def lapsed(crowd: Crowd, at: int) -> list[Member]:
    """Take out the clients that have not been heard of within their lease."""
    gone = [name for name, member in crowd.members.items() if member.until <= at]
    return [crowd.members.pop(name) for name in gone]


def stand(crowd: Crowd, member: Member, kind: int, waiting: int, head: Costs | None, at: int) -> None:
    """So many of a client wait in a class, the first of them for ``head``."""
    ticket = member.tickets[kind]
    if head is None:
        ticket[WAITING] = 0
        return
    if not ticket[WAITING]:  # it starts level with the others, and so does its class
        if not _waiters(crowd, kind):
            others = [crowd.served[other] for other in CLASSES if other != kind and _waiters(crowd, other)]
            if others:
                crowd.served[kind] = max(crowd.served[kind], min(others))
        ticket[SERVED] = max(ticket[SERVED], crowd.floors[kind])
        ticket[DUE] = at
    ticket[WAITING] = waiting
    ticket[HEAD:] = head


def _waiters(crowd: Crowd, kind: int) -> list[Ticket]:
    return [member.tickets[kind] for member in crowd.members.values() if member.tickets[kind][WAITING]]


def ahead(crowd: Crowd, member: Member, kind: int, at: int) -> list[tuple[Ticket, int]]:
    """The places in line whose turn comes before this client's in this class; empty if it is its turn.

    Each with what it has been served less, in µs of the limit.
    """
    found: list[tuple[Ticket, int]] = []
    own = member.tickets[kind]
    for other in CLASSES:
        if other == kind:
            found += [
                (ticket, own[SERVED] - ticket[SERVED])
                for ticket in _waiters(crowd, kind)
                if ticket is not own and ticket[SERVED] + SLACK_US < own[SERVED] and _comes(ticket, at)
            ]
        elif crowd.served[other] + SLACK_US < crowd.served[kind]:
            first = [ticket for ticket in _waiters(crowd, other) if _comes(ticket, at)]
            if first:
                lag = (crowd.served[kind] - crowd.served[other]) * max(crowd.shares[other], 1) // 100
                found.append((min(first, key=_served), lag))
    return found


def _served(ticket: Ticket) -> int:
    return ticket[SERVED]


def _comes(ticket: Ticket, at: int) -> bool:
    """Whether it is to be waited for: not yet due, or hardly late."""
    return ticket[DUE] >= NEVER or at <= ticket[DUE] + LATE_US


def serve(crowd: Crowd, member: Member, kind: int, weight_us: int) -> None:
    """A permit goes to a client: ``weight_us`` of the slowest limit's time."""
    ticket = member.tickets[kind]
    waiting = [other[SERVED] for other in _waiters(crowd, kind)]
    if waiting:
        crowd.floors[kind] = max(crowd.floors[kind], min(waiting))
    ticket[SERVED] += weight_us
    crowd.served[kind] += weight_us * 100 // max(crowd.shares[kind], 1)


def first_in_turn(crowd: Crowd, at: int) -> list[tuple[str, int]]:
    """(client, class) of all who wait, whose turn is first first."""
    found = [
        (crowd.served[kind], ticket[SERVED], name, kind)
        for name, member in crowd.members.items()
        for kind, ticket in enumerate(member.tickets)
        if ticket[WAITING] and _comes(ticket, at)
    ]
    return [(name, kind) for _, _, name, kind in sorted(found)]
