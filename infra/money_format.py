"""Amounts for people of a locale: `1.234,56 €`, `US$1,234.56`, `￥1,234`."""

from __future__ import annotations

from babel import Locale, UnknownLocaleError
from babel.numbers import format_currency

from billing.errors import Rejected
from billing.money import Money, exponent


def check_locale(name: str) -> None:
    """Refuse what is no locale.

    Raises:
        Rejected: naming the field `locale`.
    """
    _locale(name)


def localized(money: Money, locale: str) -> str:
    """The amount as `locale` writes it, with the digits of ISO 4217, which CLDR shortens for some currencies.

    Raises:
        Rejected: there is no such locale.
    """
    digits = exponent(money.currency)
    spoken = _locale(locale)
    pattern = spoken.currency_formats["standard"].pattern
    decimals = "." + "0" * digits if digits else ""
    return format_currency(
        money.major(),
        money.currency,
        format=pattern.replace(".00", decimals),
        locale=spoken,
        currency_digits=False,
    )


def _locale(name: str) -> Locale:
    try:
        return Locale.parse(name.replace("-", "_"))
    except (UnknownLocaleError, ValueError, TypeError) as e:
        raise Rejected("unknown_locale", f"{name[:40]!r} is no locale such as de-DE", field="locale") from e
