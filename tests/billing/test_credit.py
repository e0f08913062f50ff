"""Credits, wallets and grants: who pays first, and what is left (SEMANTICS 28)."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing.credit import Credit, CreditKind, Wallet, burn_order, pay_from_wallets, spend, top_up
from billing.grant import Grant, burn_down, is_active
from billing.money import Money
from billing.period import Alignment, Cadence, Period

D = Decimal


def day(number: int) -> datetime:
    return datetime(2026, 1, number, tzinfo=UTC)


def usd(minor: int) -> Money:
    return Money(minor, "USD")


def test_priority_then_expiry_then_granted_then_oldest() -> None:
    credits = [
        Credit(id="low", left=usd(1), priority=60),
        Credit(id="bought", left=usd(1), kind=CreditKind.PURCHASED),
        Credit(id="new", left=usd(1), created_at=day(2)),
        Credit(id="old", left=usd(1), created_at=day(1)),
        Credit(id="ends", left=usd(1), kind=CreditKind.PURCHASED, expires_at=day(9)),
    ]
    assert [each.id for each in burn_order(credits)] == ["ends", "old", "new", "bought", "low"]


def test_a_credit_that_expires_at_a_periods_end_still_pays_its_invoice() -> None:
    credits = [Credit(id="a", left=usd(500), expires_at=day(10)), Credit(id="b", left=usd(500))]
    assert spend(credits, usd(700), covers_until=day(10)).consumed == (("a", usd(500)), ("b", usd(200)))
    assert spend(credits, usd(700), covers_until=day(11)).consumed == (("b", usd(500)),)


def test_a_credit_of_another_currency_pays_nothing() -> None:
    made = spend([Credit(id="eur", left=Money(500, "EUR"))], usd(100))
    assert (made.consumed, made.unpaid) == ((), usd(100))


@given(st.lists(st.integers(0, 1000), max_size=6), st.integers(0, 3000))
def test_nothing_is_lost_in_spending(balances: list[int], amount: int) -> None:
    credits = [Credit(id=str(i), left=usd(balance)) for i, balance in enumerate(balances)]
    made = spend(credits, usd(amount))
    assert sum(part.minor for _, part in made.consumed) + made.unpaid.minor == amount
    assert sum(each.left.minor for each in made.credits) == sum(balances) - amount + made.unpaid.minor
    assert all(each.left.minor >= 0 for each in made.credits)


def test_units_of_credit_are_worth_their_rate() -> None:
    assert top_up(D("17.9699999999999988"), D(1), "EUR") == Money(1797, "EUR")
    assert top_up(D(60), D("0.5"), "USD") == usd(3000)


def test_a_limited_wallet_pays_only_its_lines() -> None:
    wallets = [
        Wallet(id="any", balance=usd(100), priority=2),
        Wallet(id="fees", balance=usd(100), priority=1, limited_to=("fee",)),
        Wallet(id="euro", balance=Money(100, "EUR"), priority=1),
    ]
    paid = pay_from_wallets(wallets, [("usage", usd(80)), ("fee", usd(130))])
    assert paid == {"fees": usd(100), "any": usd(100)}


DAILY = Cadence("UTC", datetime(2026, 1, 1), "P1D", Alignment.ANCHOR)  # noqa: DTZ001
MONTH = Period(day(1), day(31))


def grant(name: str, amount: int, first: int = 1, last: int = 31, **fields: object) -> Grant:
    return Grant(id=name, amount=D(amount), effective_at=day(first), expires_at=day(last), **fields)  # type: ignore[arg-type]


def test_grants_burn_by_priority_and_what_no_grant_covers_is_overage() -> None:
    grants = [grant("late", 100, priority=2), grant("soon", 100, last=20), grant("first", 10, priority=0)]
    burnt = burn_down(grants, [(day(5), D(150)), (day(25), D(70))], Period(day(1), day(26)))
    assert (burnt.balances, burnt.overage, burnt.usage) == ({"late": 0, "soon": 0, "first": 0}, 10, 220)


def test_a_refill_restores_the_full_amount_and_covers_earlier_overage() -> None:
    burnt = burn_down([grant("daily", 100, recurrence=DAILY)], [(day(1), D(120))], Period(day(1), day(2)))
    assert (burnt.balances["daily"], burnt.overage) == (80, 0)


def test_a_reset_rolls_over_within_bounds_and_forgets_overage_unless_it_is_preserved() -> None:
    grants = [grant("keeps", 100, rollover_max=D(40)), grant("fills", 100, rollover_min=D(30), rollover_max=D(50))]
    usage = [(day(2), D(190))]
    burnt = burn_down(grants, usage, Period(day(1), day(10)), resets=[day(10)])
    assert burnt.balances == {"keeps": 10, "fills": 30}
    assert (burnt.overage, burnt.usage) == (0, 0)
    owed = burn_down(grants, [(day(2), D(225))], Period(day(1), day(10)), resets=[day(10)], preserve_overage=True)
    assert (sum(owed.balances.values()), owed.overage) == (5, 0)


def test_a_grant_holds_until_the_first_of_its_ends() -> None:
    made = grant("g", 5, voided_at=day(10), deleted_at=day(12))
    assert [is_active(made, day(n)) for n in (1, 9, 10, 11)] == [True, True, False, False]
    assert burn_down([made], [(day(10), D(3))], MONTH).overage == 3


def test_known_balances_are_taken_up() -> None:
    burnt = burn_down([grant("g", 100)], [(day(2), D(30))], MONTH, starting={"g": D(40)})
    assert burnt.balances["g"] == 0  # it expired at the end of the month
    assert (
        burn_down([grant("g", 100)], [(day(2), D(30))], Period(day(1), day(3)), starting={"g": D(40)}).balances["g"]
        == 10
    )


@given(st.permutations([(day(n), D(n)) for n in range(2, 9)]))
def test_the_order_of_arrival_does_not_matter(usage: list[tuple[datetime, Decimal]]) -> None:
    grants = [grant("a", 10, last=5), grant("b", 12, first=3)]
    assert burn_down(grants, usage, MONTH) == burn_down(grants, sorted(usage), MONTH)
