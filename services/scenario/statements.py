"""One line of a timeline: a local time, a verb and what it is about.

2026-02-01        subscribe  acme pro                            as ID, from TIME, until TIME, trial P14D, in EUR,
                                                                 with ADD-ON x 3
2026-02-10        usage      acme api.call x 12,000 region=eu    id=ID, source=SOURCE, at TIME, user=u[1..25]
2026-02-11        void       ID                                  source=SOURCE
2026-02-11        amend      acme api.call id=ID region=us       source=SOURCE, at TIME
2026-02-10 09:30  redeem     acme WELCOME
2026-02-12        change     acme gold at once                   at once | at period end
2026-02-12        migrate    acme                                to the newest version of its plan
2026-02-13        add        acme storage x 3                    at once | at period end
2026-02-14        remove     acme storage
2026-02-14        anchor     acme to 2026-02-20                  at once | at period end
2026-02-14        zone       acme Asia/Tokyo
2026-02-14        override   acme pro                            own prices, indented below
2026-02-10        jurisdiction  acme US-NY
2026-02-10        grant      acme 20.00 USD as PROMO             purchased, priority N, until TIME
2026-02-15        cancel     acme at once                        at once | at period end
2026-03-01        publish    newer.yaml                          or the sections, indented below
2026-03-02        pay        000001
2026-04-01        clock
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from billing.errors import Rejected
from billing.money import Money
from services.scenario.verbs import (
    Add,
    Amend,
    Anchor,
    Cancel,
    Change,
    Clock,
    Give,
    Migrate,
    Override,
    Pay,
    Publish,
    Redeem,
    Remove,
    Subscribe,
    TaxIn,
    Use,
    Verb,
    Void,
    Zone,
)
from services.shapes import Fault

EVENTS_MAX = 100_000  # of one line
_COMMENT = re.compile(r"\s#.*")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}\Z", re.ASCII)
_TIME = re.compile(r"\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?\Z", re.ASCII)
_COUNT = re.compile(r"\d{1,3}(,\d{3})+\Z|\d+\Z", re.ASCII)
_AMOUNT = re.compile(r"\d{1,15}(,\d{3})*(\.\d{1,12})?\Z", re.ASCII)
_RANGE = re.compile(r"(?P<before>.*)\[(?P<first>\d{1,9})\.\.(?P<last>\d{1,9})\](?P<after>.*)\Z", re.ASCII)


@dataclass(slots=True)
class Statement:
    """A line of the timeline."""

    line: int
    at: datetime
    """Local, or with the offset that was written."""
    verb: Verb
    text: str
    """The line after its time, for reports."""
    block: bytes = b""
    """Sections that stand indented below, with the file's own line numbers."""


class Unclear(Exception):
    """The line says nothing that we understand; `fault` says where."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


@dataclass(slots=True)
class _Words:
    """The words of a line, taken one after the other."""

    verb: str
    left: list[str] = field(default_factory=list)

    def take(self, name: str) -> str:
        """The next word.

        Raises:
            Unclear: there is none.
        """
        if not self.left:
            raise Unclear(Fault("missing_field", f"write it as: {_USAGE[self.verb]}", f"{self.verb}.{name}"))
        return self.left.pop(0)

    def after(self, word: str) -> bool:
        """Whether the next word is `word`, which is taken."""
        if self.left and self.left[0] == word:
            self.left.pop(0)
            return True
        return False

    def time(self, name: str) -> datetime:
        """The next one or two words as a time."""
        return when(self.left, f"{self.verb}.{name}")

    def end(self) -> None:
        """Nothing may be left."""
        if self.left:
            detail = f"what is {self.left[0]!r}? write it as: {_USAGE[self.verb]}"
            raise Unclear(Fault("unexpected", detail, self.verb))


def parse(line: int, text: str) -> Statement:
    """What a line of the timeline says.

    Raises:
        Unclear: naming the field and what is allowed.
    """
    try:
        words = shlex.split(_COMMENT.sub("", text))
    except ValueError as e:
        raise Unclear(Fault("malformed", f"{e}".lower(), "")) from e
    at = when(words, "time")
    if not words:
        raise Unclear(Fault("missing_field", f"after the time stands one of {', '.join(_VERBS)}", "verb"))
    verb = words.pop(0)
    if verb not in _VERBS:
        near = difflib.get_close_matches(verb, _VERBS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(_VERBS)}"
        raise Unclear(Fault("unknown_verb", f"there is no {verb!r}; {meant}", "verb"))
    said = " ".join((verb, *words))
    taken = _Words(verb, words)
    made = _VERBS[verb](taken)
    taken.end()
    return Statement(line, at, made, said)


def when(words: list[str], name: str) -> datetime:
    """The time that `words` begin with, a date and maybe a time of day, which are taken.

    Raises:
        Unclear: they do not begin with a time.
    """
    example = "a date is needed here, such as 2026-02-01 or 2026-02-01 09:30"
    if not words or not _DATE.match(words[0]):
        raise Unclear(Fault("invalid_time", example, name))
    text = words.pop(0)
    if words and _TIME.match(words[0]):
        text += f"T{words.pop(0)}"
    try:
        return datetime.fromisoformat(text)
    except ValueError as e:
        raise Unclear(Fault("invalid_time", f"{text}: {e}", name)) from e


def _subscribe(words: _Words) -> Subscribe:
    customer, plan = words.take("customer"), words.take("plan")
    made = Subscribe(customer, plan, subscription=customer)
    while words.left:
        if words.after("as"):
            made = replace(made, subscription=words.take("as"))
        elif words.after("from"):
            made = replace(made, starts_at=words.time("from"))
        elif words.after("until"):
            made = replace(made, ends_at=words.time("until"))
        elif words.after("trial"):
            made = replace(made, trial=words.take("trial"))
        elif words.after("day"):
            made = replace(made, billing_day=_count(words.take("day"), "subscribe.day"))
        elif words.after("zone"):
            made = replace(made, zone=words.take("zone"))
        elif words.after("in"):
            made = replace(made, currency=words.take("in"))
        elif words.after("with"):
            add_on = words.take("with")
            made = replace(made, add_ons=(*made.add_ons, (add_on, _quantity(words))))
        else:
            break
    return made


def _use(words: _Words) -> Use:
    customer, type = words.take("customer"), words.take("type")
    count, at = 1, None
    properties: dict[str, str] = {}
    while words.left:
        if words.after("x"):
            count = _count(words.take("x"), f"{words.verb}.x")
        elif words.after("at"):
            at = words.time("at")
        elif "=" in words.left[0]:
            name, _, value = words.left.pop(0).partition("=")
            if name in properties:
                raise Unclear(Fault("duplicate", "it stands there twice", f"{words.verb}.{name}"))
            properties[name] = value
        else:
            break
    id, source = properties.pop("id", ""), properties.pop("source", "scenario")
    each = _spread(properties)
    if id and (count > 1 or len(each) > 1):
        raise Unclear(Fault("unexpected", "an id names one event; leave it out for many", f"{words.verb}.id"))
    if count * len(each) > EVENTS_MAX:
        raise Unclear(Fault("out_of_range", f"allowed are up to {EVENTS_MAX:,} events on a line", f"{words.verb}.x"))
    return Use(customer, type, each, count, at, id, source)


def _void(words: _Words) -> Void:
    id, source = words.take("id").removeprefix("id="), "scenario"
    if words.left and words.left[0].startswith("source="):
        source = words.left.pop(0).removeprefix("source=")
    return Void(id, source)


def _amend(words: _Words) -> Amend:
    event = _use(words)
    if not event.id:
        raise Unclear(Fault("missing_field", f"write it as: {_USAGE['amend']}", "amend.id"))
    return Amend(event)


def _spread(properties: dict[str, str]) -> tuple[dict[str, str], ...]:
    """The properties of each event: `user=u[1..25]` makes twenty-five of them."""
    ranged = {name: match for name, value in properties.items() if (match := _RANGE.match(value))}
    if not ranged:
        return (properties,)
    if len(ranged) > 1:
        raise Unclear(Fault("unexpected", "only one property may count up", f"usage.{list(ranged)[1]}"))
    ((name, match),) = ranged.items()
    first, last = int(match["first"]), int(match["last"])
    if not first <= last < first + EVENTS_MAX:
        detail = f"[{first}..{last}] counts up, over {EVENTS_MAX:,} at most"
        raise Unclear(Fault("out_of_range", detail, f"usage.{name}"))
    return tuple(
        {**properties, name: f"{match['before']}{number}{match['after']}"} for number in range(first, last + 1)
    )


def _count(text: str, name: str) -> int:
    if not _COUNT.match(text) or not 0 < (count := int(text.replace(",", ""))) <= EVENTS_MAX:
        detail = f"{text[:20]!r}: allowed is a whole number up to {EVENTS_MAX:,}, such as 12,000"
        raise Unclear(Fault("out_of_range", detail, name))
    return count


def _quantity(words: _Words) -> int:
    """`x 3`, or one if it is not said."""
    return _count(words.take("x"), f"{words.verb}.x") if words.after("x") else 1


def _at_period_end(words: _Words, unsaid: bool) -> bool:
    """`at once` or `at period end`."""
    if not words.after("at"):
        return unsaid
    if words.after("once"):
        return False
    if words.left[:2] == ["period", "end"]:
        del words.left[:2]
        return True
    raise Unclear(Fault("unexpected", f"write it as: {_USAGE[words.verb]}", f"{words.verb}.at"))


def _change(words: _Words) -> Change:
    return Change(words.take("subscription"), words.take("plan"), _at_period_end(words, unsaid=True))


def _migrate(words: _Words) -> Migrate:
    return Migrate(words.take("subscription"), _at_period_end(words, unsaid=True))


def _add(words: _Words) -> Add:
    subscription, add_on = words.take("subscription"), words.take("add_on")
    return Add(subscription, add_on, _quantity(words), _at_period_end(words, unsaid=False))


def _remove(words: _Words) -> Remove:
    return Remove(words.take("subscription"), words.take("add_on"), _at_period_end(words, unsaid=True))


def _anchor(words: _Words) -> Anchor:
    subscription = words.take("subscription")
    to = words.time("to") if words.after("to") else None
    return Anchor(subscription, to, _at_period_end(words, unsaid=True))


def _cancel(words: _Words) -> Cancel:
    return Cancel(words.take("subscription"), _at_period_end(words, unsaid=True))


def _give(words: _Words) -> Give:
    customer, amount, currency = words.take("customer"), words.take("amount"), words.take("currency")
    if not _AMOUNT.match(amount):
        raise Unclear(Fault("invalid_type", f"{amount[:20]!r} is no amount such as 20.00", "grant.amount"))
    try:
        money = Money.exactly(Decimal(amount.replace(",", "")), currency)
    except Rejected as e:
        raise Unclear(Fault(e.code, e.detail, f"grant.{e.field}")) from e
    grant, purchased, priority, expires_at = "grant", False, None, None
    while words.left:
        if words.after("as"):
            grant = words.take("as")
        elif words.after("priority"):
            priority = _count(words.take("priority"), "grant.priority")
        elif words.after("until"):
            expires_at = words.time("until")
        elif words.after("purchased"):
            purchased = True
        else:
            break
    return Give(customer, money, grant, purchased, priority, expires_at)


def _publish(words: _Words) -> Publish:
    return Publish(words.left.pop(0) if words.left else "")


_VERBS: dict[str, Callable[[_Words], Verb]] = {
    "subscribe": _subscribe,
    "change": _change,
    "migrate": _migrate,
    "add": _add,
    "remove": _remove,
    "anchor": _anchor,
    "zone": lambda words: Zone(words.take("subscription"), words.take("zone")),
    "override": lambda words: Override(words.take("customer"), words.take("plan")),
    "usage": _use,
    "void": _void,
    "amend": _amend,
    "cancel": _cancel,
    "redeem": lambda words: Redeem(words.take("customer"), words.take("coupon")),
    "jurisdiction": lambda words: TaxIn(words.take("customer"), words.take("jurisdiction")),
    "grant": _give,
    "publish": _publish,
    "pay": lambda words: Pay(words.take("number")),
    "clock": lambda words: Clock(),
}
_USAGE = {
    "subscribe": "subscribe CUSTOMER PLAN [as ID] [from TIME] [until TIME] [trial LENGTH] [day 1..31] [in CURRENCY]"
    " [with ADD-ON [x QUANTITY]]...",
    "change": "change SUBSCRIPTION PLAN [at once | at period end]",
    "migrate": "migrate SUBSCRIPTION [at once | at period end]",
    "add": "add SUBSCRIPTION ADD-ON [x QUANTITY] [at once | at period end]",
    "remove": "remove SUBSCRIPTION ADD-ON [at once | at period end]",
    "anchor": "anchor SUBSCRIPTION [to TIME] [at once | at period end]",
    "zone": "zone SUBSCRIPTION ZONE",
    "override": "override CUSTOMER PLAN, with charges, minimum_commitment or discount_percent indented below",
    "usage": "usage CUSTOMER TYPE [x COUNT] [at TIME] [id=ID] [source=SOURCE] [PROPERTY=VALUE ...]",
    "void": "void ID [source=SOURCE]",
    "amend": "amend CUSTOMER TYPE id=ID [at TIME] [source=SOURCE] [PROPERTY=VALUE ...]",
    "cancel": "cancel SUBSCRIPTION [at once | at period end]",
    "redeem": "redeem CUSTOMER COUPON",
    "jurisdiction": "jurisdiction CUSTOMER CODE",
    "grant": "grant CUSTOMER AMOUNT CURRENCY [as ID] [purchased] [priority N] [until TIME]",
    "publish": "publish [FILE], or the catalogue's sections indented below",
    "pay": "pay INVOICE-NUMBER",
    "clock": "clock",
}
