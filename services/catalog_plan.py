"""What a catalogue file would change, for whom and from when: a comparison, without asking for anything.

Things that have a name (meters, plans, charges, coupons, features) are compared by it, so that moving one is no
difference but its own; every other value is compared field by field, down to the price that differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from billing.catalog import PriceBookPublished, PublishPriceBook
from services.read_rows import Subscribers
from services.shapes import plain, snake

_NAMES = ("key", "code", "feature")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that would be other than it is."""

    path: str
    """Such as `plans.pro.charges.base.model.amount`; names stand where a file has places."""
    before: Any
    """As JSON would say it; None if it is new."""
    after: Any
    """As JSON would say it; None if it goes."""

    @property
    def sign(self) -> str:
        """`+` new, `-` gone, `~` changed."""
        return "+" if self.before is None else "-" if self.after is None else "~"


@dataclass(frozen=True, slots=True)
class Affected:
    """Subscriptions on an earlier version of a plan that would change. Publishing alone moves none of them."""

    plan: str
    price_book_version: int
    subscriptions: int


@dataclass(frozen=True, slots=True)
class CatalogPlan:
    """What publishing would do."""

    version: int
    """Number that the next version would have; that of the newest one if nothing differs."""
    effective_at: datetime | None
    """From when new subscriptions would use it; None means at once."""
    differences: tuple[Difference, ...]
    affected: tuple[Affected, ...]


def planned(
    newest: PriceBookPublished | None,
    wanted: PublishPriceBook | None,
    effective_at: datetime | None,
    subscribers: Sequence[Subscribers],
) -> CatalogPlan:
    """What publishing `wanted` after `newest` would change. A file without prices changes none."""
    version = newest.version if newest else 0
    if wanted is None:
        return CatalogPlan(version, None, (), ())
    before = newest or PriceBookPublished(version=0, effective_at=datetime.min)  # noqa: DTZ901  # never shown
    found = tuple(
        difference
        for name in ("meters", "plans", "add_ons", "coupons")
        for difference in _compared(getattr(before, name), getattr(wanted, name), name)
    )
    changed = {each.path.split(".")[1] for each in found if each.path.startswith("plans.")}
    affected = tuple(
        Affected(each.plan, each.price_book_version, each.subscriptions) for each in subscribers if each.plan in changed
    )
    return CatalogPlan(version + bool(found), effective_at, found, affected)


def _compared(before: Any, after: Any, path: str) -> Iterator[Difference]:
    if before == after:
        return
    if isinstance(before, tuple) and isinstance(after, tuple):
        yield from _compared_lists(before, after, path)
    elif type(before) is type(after) and is_dataclass(before):
        for each in fields(before):
            yield from _compared(getattr(before, each.name), getattr(after, each.name), f"{path}.{each.name}")
    else:
        yield Difference(path, _said(before), _said(after))


def _compared_lists(before: tuple[Any, ...], after: tuple[Any, ...], path: str) -> Iterator[Difference]:
    if not _name((*before, *after)):
        if len(before) == len(after):
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from _compared(one, other, f"{path}[{index}]")
        else:
            yield Difference(path, _said(before), _said(after))
        return
    was, now = ({_named(each): each for each in side} for side in (before, after))
    for name in dict.fromkeys((*was, *now)):
        if name in was and name in now:
            yield from _compared(was[name], now[name], f"{path}.{name}")
        else:
            yield Difference(f"{path}.{name}", _said(was.get(name)), _said(now.get(name)))
    if set(was) == set(now) and list(was) != list(now):
        yield Difference(f"{path} (order)", list(was), list(now))


def _name(items: Sequence[Any]) -> str | None:
    """The field that names each of `items`; None if they have no names."""
    return next((name for name in _NAMES if items and all(hasattr(each, name) for each in items)), None)


def _named(item: Any) -> str:
    return str(next(getattr(item, name) for name in _NAMES if hasattr(item, name)))


def _said(value: Any) -> Any:
    if isinstance(value, Decimal):
        text = format(value, "f")  # the log does not keep how many zeros were written
        return text.rstrip("0").rstrip(".") if "." in text else text
    said = plain(value)
    if is_dataclass(value) and not isinstance(value, type) and not any(hasattr(value, name) for name in _NAMES):
        return {"type": snake(type(value).__name__), **said}
    return said


def as_json(plan: CatalogPlan) -> str:
    """`plan` for programs."""
    differences = [{"path": each.path, "before": each.before, "after": each.after} for each in plan.differences]
    affected = [
        {"plan": each.plan, "price_book_version": each.price_book_version, "subscriptions": each.subscriptions}
        for each in plan.affected
    ]
    effective_at = plain(plan.effective_at)
    return json.dumps(
        {"version": plan.version, "effective_at": effective_at, "differences": differences, "affected": affected}
    )


def as_text(plan: CatalogPlan, zone: str) -> str:
    """`plan` for people, with local times."""
    if not plan.differences:
        return "no differences: the newest price book says the same" if plan.version else "nothing to publish"
    when = f"{plan.effective_at.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} {zone}" if plan.effective_at else "at once"
    width = max(len(each.path) for each in plan.differences)
    rows = [f"price book {plan.version}, effective {when}"]
    rows += [f"  {each.sign} {each.path:<{width}}  {_change(each)}".rstrip() for each in plan.differences]
    rows.append("for whom")
    rows.append(f"  new subscriptions that start then or later{'' if plan.effective_at else ' (from now on)'}")
    for each in plan.affected:
        noun, verb = ("subscription", "stays") if each.subscriptions == 1 else ("subscriptions", "stay")
        who = f"{each.subscriptions} {noun} on price book {each.price_book_version}"
        rows.append(f"  {each.plan}: {who} {verb} on it until `catalog migrate --plan {each.plan}`")
    return "\n".join(rows)


def _change(each: Difference) -> str:
    if each.sign == "~":
        return f"{_short(each.before)} -> {_short(each.after)}"
    return _short(each.after if each.sign == "+" else each.before)


def _short(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return str(value["name"])
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
