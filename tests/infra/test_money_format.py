"""Amounts are written as a locale does, to the last digit of ISO 4217."""

from __future__ import annotations

import pytest

from billing.errors import Rejected
from billing.money import Money
from infra.money_format import localized


@pytest.mark.parametrize(
    ("money", "locale", "words"),
    [
        (Money(123456, "EUR"), "de-DE", "1.234,56\xa0€"),
        (Money(123456, "USD"), "en-US", "$1,234.56"),
        (Money(-123456, "USD"), "en_US", "-$1,234.56"),
        (Money(1234, "JPY"), "ja-JP", "￥1,234"),
        (Money(1234567, "KWD"), "en-US", "KWD1,234.567"),
        (Money(1234567, "IQD"), "en-US", "IQD1,234.567"),  # CLDR would drop the fils
        (Money(1234567, "INR"), "hi-IN", "₹12,345.67"),
        (Money(12345678, "CHF"), "de-CH", "CHF\xa0123’456.78"),
    ],
)
def test_an_amount_is_written_as_its_locale_does(money: Money, locale: str, words: str) -> None:
    assert localized(money, locale) == words


def test_an_unknown_locale_is_refused() -> None:
    with pytest.raises(Rejected, match="locale"):
        localized(Money(1, "USD"), "xx-QQ-nonsense!")
