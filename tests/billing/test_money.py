"""Money: exact, in one currency, rounded once, and never lost in a split (SEMANTICS 1 to 4)."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from babel.numbers import get_currency_precision, list_currencies
from hypothesis import given
from hypothesis import strategies as st

from billing.errors import CurrencyMismatch, Rejected
from billing.money import EXPONENTS, Money, exponent, half_up, text, to_minor

# Babel follows CLDR, which shows some currencies without the digits that ISO 4217 gives them.
SHOWN_WITHOUT_DIGITS = {"AFN", "ALL", "IQD", "IRR", "KPW", "LAK", "LBP", "MGA", "MMK", "RSD", "SOS", "SYP", "YER"}
amounts = st.integers(-(10**15), 10**15).map(lambda minor: Money(minor, "USD"))
weights = st.lists(st.integers(0, 10**9), min_size=1, max_size=20).filter(any)


@pytest.mark.parametrize(
    ("currency", "digits"), [("JPY", 0), ("USD", 2), ("KWD", 3), ("CLF", 4), ("ISK", 0), ("UGX", 0)]
)
def test_minor_units_come_from_iso_4217(currency: str, digits: int) -> None:
    assert exponent(currency) == digits


def test_the_table_agrees_with_babel_where_babel_follows_iso_4217() -> None:
    differing = {
        code
        for code, digits in EXPONENTS.items()
        if code in list_currencies() and get_currency_precision(code) != digits
    }
    assert differing == SHOWN_WITHOUT_DIGITS


def test_an_unknown_currency_is_refused_with_its_field() -> None:
    with pytest.raises(Rejected) as refused:
        exponent("XXQ", "plans[0].currency")
    assert (refused.value.code, refused.value.field) == ("unknown_currency", "plans[0].currency")
    with pytest.raises(Rejected) as refused:
        Money.from_major(Decimal(1), "XXQ")
    assert str(refused.value) == "currency: 'XXQ' is not an ISO 4217 code such as USD"


@pytest.mark.parametrize(
    ("major", "minor"),
    [
        ("0.004", 0),
        ("0.005", 1),  # a half goes away from zero
        ("-0.005", -1),
        ("-0.0049999999999999999999999999999999999999", 0),
        ("10.225", 1023),
        ("1234.565", 123457),
        ("99999999999999999999999999999999999999.995", 10**40),
    ],
)
def test_an_amount_is_rounded_once_half_up_away_from_zero(major: str, minor: int) -> None:
    assert Money.from_major(Decimal(major), "USD") == Money(minor, "USD")
    assert Money.from_major(Fraction(Decimal(major)), "USD") == Money(minor, "USD")


def test_an_amount_of_four_hundred_digits_is_exact() -> None:
    assert Money.from_major(Decimal("1e400"), "USD").minor == 10**402
    assert Money.from_major(Decimal("1e2000"), "KWD").minor == 10**2003
    assert Money.from_major(Decimal("0.5") + Decimal(10) ** 20, "JPY").minor == 10**20 + 1
    assert to_minor(Decimal("12345678901234567890123456789012345.675"), 2) == 1234567890123456789012345678901234568


@pytest.mark.parametrize("nonsense", ["NaN", "Infinity", "-Infinity", "sNaN"])
def test_what_is_no_number_is_no_money(nonsense: str) -> None:
    with pytest.raises(Rejected) as refused:
        Money.from_major(Decimal(nonsense), "USD")
    assert (refused.value.code, refused.value.field) == ("not_a_number", "amount")
    assert refused.value.detail == f"{nonsense} is no amount; allowed is a finite decimal"


def test_an_amount_that_is_not_to_be_rounded_must_fit_its_currency() -> None:
    assert Money.exactly(Decimal("10.50"), "USD") == Money(1050, "USD")
    assert Money.exactly(Decimal("7.000"), "JPY", "price") == Money(7, "JPY")
    with pytest.raises(Rejected) as refused:
        Money.exactly(Decimal("10.505"), "USD")
    assert (refused.value.code, refused.value.field) == ("too_precise", "amount")
    assert refused.value.detail == "10.505 is finer than USD is; allowed are 2 decimals"
    with pytest.raises(Rejected) as named:
        Money.exactly(Decimal("0.5"), "JPY", "price")
    assert (named.value.field, named.value.detail) == ("price", "0.5 is finer than JPY is; allowed are 0 decimals")


def test_a_float_is_no_money() -> None:
    with pytest.raises(TypeError):
        Money.from_major(0.1, "USD")  # type: ignore[arg-type]


@pytest.mark.parametrize("mixed", [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a < b, lambda a, b: a >= b])
def test_currencies_never_mix(mixed: object) -> None:
    with pytest.raises(CurrencyMismatch):
        mixed(Money(1, "USD"), Money(1, "EUR"))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("money", "words"),
    [
        (Money(123456, "USD"), "1,234.56"),
        (Money(-5, "USD"), "-0.05"),
        (Money(1234, "JPY"), "1,234"),
        (Money(1, "KWD"), "0.001"),
        (Money(0, "CLF"), "0.0000"),
    ],
)
def test_an_amount_is_printed_with_its_digits(money: Money, words: str) -> None:
    assert text(money) == str(money) == words


@pytest.mark.parametrize(
    ("minor", "shares", "parts"),
    [
        (100, [1, 1, 1], [34, 33, 33]),  # of equal remainders the first wins
        (100, [1, 2, 3], [17, 33, 50]),
        (5, [1, 1, 1, 1], [2, 1, 1, 1]),
        (-100, [1, 1, 1], [-34, -33, -33]),  # a credit mirrors the charge
        (1, [0, 5], [0, 1]),
        (0, [1, 1], [0, 0]),
    ],
)
def test_leftover_cents_go_to_the_largest_remainders(minor: int, shares: list[int], parts: list[int]) -> None:
    assert [part.minor for part in Money(minor, "USD").allocate(shares)] == parts


@pytest.mark.parametrize("wrong", [[0, 0], [-1, 2], []])
def test_weights_that_share_nothing_are_refused(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="weights"):
        Money(1, "USD").allocate(wrong)


@given(amounts, weights)
def test_allocation_neither_loses_nor_invents_a_cent(amount: Money, shares: list[int]) -> None:
    parts = amount.allocate(shares)
    assert sum(part.minor for part in parts) == amount.minor
    total = sum(shares)
    assert all(
        abs(part.minor - Fraction(amount.minor * share, total)) < 1 for part, share in zip(parts, shares, strict=True)
    )


@given(amounts, weights)
def test_a_credit_is_allocated_as_the_mirror_of_its_charge(amount: Money, shares: list[int]) -> None:
    assert [-part for part in amount.allocate(shares)] == list((-amount).allocate(shares))


@given(amounts, weights, st.integers(1, 1000))
def test_only_the_proportion_of_weights_matters(amount: Money, shares: list[int], scale: int) -> None:
    assert amount.allocate(shares) == amount.allocate([Fraction(share, scale) for share in shares])


@given(st.decimals(-(10**12), 10**12, places=9), st.sampled_from(sorted(EXPONENTS)))
def test_rounding_is_off_by_at_most_half_a_minor_unit(amount: Decimal, currency: str) -> None:
    money = Money.from_major(amount, currency)
    assert abs(Fraction(money.major()) - Fraction(amount)) * 10 ** exponent(currency) <= Fraction(1, 2)
    assert to_minor(amount, exponent(currency)) == half_up(Fraction(amount) * 10 ** exponent(currency))


@given(amounts, amounts, amounts)
def test_money_adds_like_integers(a: Money, b: Money, c: Money) -> None:
    assert (a + b) + c == a + (b + c)
    assert a - b == -(b - a)
    assert a + (-a) == Money.zero("USD")


def test_money_compares_and_is_false_at_zero() -> None:
    cent, nothing = Money(1, "USD"), Money.zero("USD")
    assert nothing < cent
    assert cent > nothing
    assert cent <= Money(1, "USD") >= cent
    assert abs(-cent) == cent
    assert bool(cent)
    assert not nothing
    assert cent.times(Fraction(5, 2)) == Money(3, "USD")
