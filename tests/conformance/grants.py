"""grants.json: grants, credits and wallets, through `billing.grant` and `billing.credit`."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.credit import NEVER, Credit, CreditKind, Wallet, pay_from_wallets, spend, top_up
from billing.grant import Grant, burn_down, effective_period
from billing.grant import burn_order as order_of_grants
from billing.grant import is_active as grant_is_active
from billing.money import Money, exponent
from billing.period import Alignment, Cadence, Period
from tests.conformance import allowances
from tests.conformance.figures import first, instant, number
from tests.conformance.peers import Peer
from tests.conformance.proration import INTERVALS

Given = dict[str, Any]
Results = dict[str, Any]


def grant(given: Given) -> Grant:
    def at(key: str) -> Any:
        return instant(given[key]) if given.get(key) else None

    recurrence = given.get("recurrence")
    return Grant(
        id=given.get("id", "grant"),
        amount=number(given.get("amount")),
        priority=given.get("priority", 1),
        effective_at=at("effective_at") or instant("2000-01-01"),
        expires_at=at("expires_at"),
        voided_at=at("voided_at"),
        deleted_at=at("deleted_at"),
        created_at=at("created_at") or instant("2000-01-01"),
        recurrence=Cadence(
            "UTC",
            instant(recurrence["anchor"]).replace(tzinfo=None),
            INTERVALS[recurrence["interval"]],
            Alignment.ANCHOR,
        )
        if recurrence
        else None,
        rollover_min=number(given.get("rollover_min")),
        rollover_max=number(given.get("rollover_max")),
    )


def grant_burn_down(given: Given, peer: Peer) -> Results:
    starting = {each["id"]: number(each["starting_balance"]) for each in given["grants"] if "starting_balance" in each}
    resets = [each if isinstance(each, str) else each["at"] for each in given.get("resets", ())]
    preserve = any(isinstance(each, dict) and each.get("preserve_overage") for each in given.get("resets", ()))
    burnt = burn_down(
        [grant(each) for each in given["grants"]],
        [(instant(each["at"]), number(each["quantity"])) for each in given["usage"]],
        Period(instant(given["start"]), instant(given["until"])),
        starting=starting,
        resets=[instant(each) for each in resets],
        preserve_overage=preserve or bool(given.get("preserve_overage")),
    )
    return {"balances": burnt.balances, "overage": burnt.overage, "usage_since_reset": burnt.usage}


def burn_order(given: Given, peer: Peer) -> Results:
    return {"order": [each.id for each in order_of_grants(grant(each) for each in given["grants"])]}


def effective(given: Given, peer: Peer) -> Results:
    found = effective_period(grant(given))
    return {"from": found.start, "to_exclusive": None if found.end == NEVER else found.end}


def is_active(given: Given, peer: Peer) -> Results:
    return {"active": grant_is_active(grant(given), instant(given["at"]))}


def wallet_burn(given: Given, peer: Peer) -> Results:
    rate = number(given.get("credit_rate", "1"))

    def cents(each: Given) -> Money:
        return (
            top_up(number(each["credits"]), rate, "USD")
            if "credits" in each
            else Money(int(each["amount_cents"]), "USD")
        )

    credits = tuple(
        Credit(
            id=each["id"],
            left=cents(each),
            priority=each.get("priority", 50),
            kind=CreditKind(each.get("kind", "granted")),
            created_at=instant(each["created"]) if "created" in each else instant(f"2000-01-{i + 1:02}"),
        )
        for i, each in enumerate(given["credits"])
    )
    initial, consumed = sum((each.left.minor for each in credits), 0), []
    for use in given["uses"]:
        spending = spend(credits, cents(use))
        consumed.append({key: part.minor for key, part in spending.consumed})
        credits = spending.credits
    return {
        "initial_cents": initial,
        "consumed": consumed,
        "remaining_cents": {each.id: each.left.minor for each in credits},
    }


def wallet_allocation(given: Given, peer: Peer) -> Results:
    currency = given.get("invoice_currency", "USD")
    wallets = [
        Wallet(
            id=each["id"],
            balance=Money(int(each["balance_cents"]), each.get("currency", currency)),
            priority=each.get("priority", 50),
            limited_to=tuple(each.get("limited_to", ())),
        )
        for each in given["wallets"]
    ]
    lines = [
        (each["type"], Money(int(each["net_cents"]) + int(each["tax_cents"]), currency)) for each in given["lines"]
    ]
    return {"used_cents": {key: part.minor for key, part in pay_from_wallets(wallets, lines).items()}}


def credits_to_money(given: Given, peer: Peer) -> Results:
    """Credits that are no whole minor units are worth what those that are would be."""
    rate = number(first(given, "credit_rate", "conversion_rate", "rate", "rate_amount", default="1"))
    currency = given.get("currency", "USD")
    if "amount_cents" in given:
        money = Money.from_major(number(given["amount_cents"]).scaleb(-exponent(currency)), currency)
    else:
        money = top_up(number(first(given, "credits", "credit_amount")), rate, currency)
    return {
        "amount": money,
        "amount_cents": money.minor,
        "balance_cents": money.minor,
        "credits": Fraction(money.major()) / Fraction(rate),
    }


def wallet_overdraw(given: Given, peer: Peer) -> Results:
    """A use that may overdraw a wallet leaves what no credit paid as a negative balance."""
    rate = number(first(given, "credit_rate", "conversion_rate", "rate", default="1"))

    def money(*names: str) -> Money:
        for name in names:
            if given.get(f"{name}_cents") is not None:
                return Money(int(given[f"{name}_cents"]), "USD")
            if given.get(name) is not None:
                return top_up(number(given[name]), rate if "credit" in name else Decimal(1), "USD")
        return Money.zero("USD")

    balance = money("balance", "credit_balance")
    use = money("use", "debit", "usage", "amount", "debit_credits", "credits", "consumed")
    spending = spend([Credit(id="wallet", left=balance)], use)
    after = sum((each.left for each in spending.credits), Money.zero("USD")) - spending.unpaid
    return {
        **dict.fromkeys(("balance", "balance_after", "new_balance", "remaining"), after),
        **{f"{name}_cents": after.minor for name in ("balance", "balance_after", "new_balance", "remaining")},
        "overdrawn": spending.unpaid,
        "overdrawn_cents": spending.unpaid.minor,
        "credit_balance": Fraction(after.major()) / Fraction(rate),
        "negative": after.minor < 0,
    }


OPERATIONS = {
    "grant_burn_down": grant_burn_down,
    "burn_order": burn_order,
    "effective_period": effective,
    "is_active": is_active,
    "wallet_burn": wallet_burn,
    "wallet_allocation": wallet_allocation,
    "credits_to_money": credits_to_money,
    "wallet_overdraw": wallet_overdraw,
    **allowances.OPERATIONS,
}
