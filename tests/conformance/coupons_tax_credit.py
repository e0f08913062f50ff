"""coupons_tax_credit.json: coupons, taxes, credit notes and money, through their modules of `billing/`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from billing.credit import Credit, spend, top_up
from billing.crediting import CreditableLine, creditable, credited, refund, unused_credit
from billing.discount import Coupon, discounts
from billing.errors import CurrencyMismatch, Rejected
from billing.money import Money, exponent
from billing.tax import TaxedLine, TaxRate, tax_lines, taxes
from tests.conformance.figures import first, number
from tests.conformance.peers import Peer

Given = dict[str, Any]
Results = dict[str, Any]


def cents(value: Any, currency: str = "USD") -> Money:
    return Money(int(value), currency)


def coupon(given: Given, code: str = "coupon", currency: str = "USD", lines: Sequence[str] = ()) -> Coupon:
    """A coupon as a catalogue would publish it; `lines` are the keys that it is limited to."""
    fixed = given["kind"] == "fixed"
    own = first(given, "coupon_currency", "currency", default=currency)
    made = Coupon(
        code=code,
        percent=None if fixed else number(given["percent"]),
        amount=cents(given["amount_cents"], own).major() if fixed else None,
        currency=own if fixed else None,
        invoices=given.get("remaining_periods") or None,
        charges=tuple(lines) or tuple(str(i) for i in given.get("eligible_lines") or ()),
        carry_over=fixed and given.get("frequency") == "once",
    )
    made.check("coupon")
    return made


def coupon_amount(given: Given, peer: Peer) -> Results:
    return coupon_on_lines({**given, "lines_cents": [given["base_cents"]]}, peer)


def coupon_on_lines(given: Given, peer: Peer) -> Results:
    currency = first(given, "invoice_currency", "currency", default="USD")
    lines = [cents(each, currency) for each in given["lines_cents"]]
    open_lines = [
        line - cents(off, currency)
        for line, off in zip(lines, given.get("prior_discounts_cents", [0] * len(lines)), strict=True)
    ]
    made = coupon(given, currency=currency)
    left = {}
    if "already_used_cents" in given:
        left["coupon"] = cents(int(given["amount_cents"]) - int(given["already_used_cents"]), currency)
    taken = discounts([made], open_lines, [str(i) for i in range(len(lines))], left)
    per_line = taken[0].amounts if taken else [Money.zero(currency)] * len(lines)
    total = sum(per_line, Money.zero(currency))
    remaining = given["remaining_periods"] - bool(total) if given.get("remaining_periods") is not None else None
    used_up = given.get("frequency", "once") == "once" and (
        made.amount is None or int(given.get("already_used_cents", 0)) + total.minor >= int(given["amount_cents"])
    )
    return {
        "discount_cents": total.minor,
        "per_line_cents": [each.minor for each in per_line],
        "remaining_periods": remaining,
        "coupon_exhausted": remaining == 0 if remaining is not None else used_up,
    }


def coupons_in_sequence(given: Given, peer: Peer) -> Results:
    currency = given.get("currency", "USD")
    base = cents(given["base_cents"], currency)
    made = [coupon(each, f"coupon {i}", currency) for i, each in enumerate(given["coupons"])]
    taken = discounts(made, [base], order=peer.coupon_order)
    total = sum((each.total for each in taken), Money.zero(currency))
    return {"discount_cents": total.minor, "net_cents": (base - total).minor, "coupons_used": len(taken)}


def tax(given: Given, peer: Peer) -> Results:
    net = cents(given["amount_cents"]) - cents(given.get("discount_cents", 0))
    made = taxes(_rates(given), [net], "USD")
    return {
        "tax_cents": sum(each.amount.minor for each in made),
        "per_tax_cents": [each.amount.minor for each in made],
        "net_cents": net.minor,
        "total_cents": net.minor + sum(each.amount.minor for each in made),
    }


def tax_per_line(given: Given, peer: Peer) -> Results:
    lines = [
        TaxedLine(cents(each["amount_cents"]) - cents(each.get("discount_cents", 0)), _rates(each))
        for each in given["lines"]
    ]
    made = tax_lines(lines, rounding=peer.tax_rounding)
    return {
        "per_line_tax_cents": [each.minor for each in made.per_line],
        "tax_cents": made.total.minor,
        "total_cents": (sum((line.net for line in lines), Money.zero("USD")) + made.total).minor,
    }


def discount_then_tax(given: Given, peer: Peer) -> Results:
    """Either one amount, or lines that a discount is allocated over; the rates are those of all lines."""
    amounts = first(given, "lines_cents", "lines") or [first(given, "amount_cents", "base_cents", "sub_total_cents")]
    rates = given["tax_percents"] if "tax_percents" in given else [given["tax_percent"]]
    lines = [
        {"tax_percents": rates, **(each if isinstance(each, dict) else {"amount_cents": each})} for each in amounts
    ]
    coupons = list(given.get("coupons") or ())
    if given.get("discount_percent") is not None:
        coupons.append({"kind": "percentage", "percent": given["discount_percent"]})
    if int(given.get("discount_cents") or 0):
        coupons.append({"kind": "fixed", "amount_cents": given["discount_cents"]})
    return invoice_discount_tax({**given, "lines": lines, "coupons": coupons}, peer)


def invoice_discount_tax(given: Given, peer: Peer) -> Results:
    """Lines with rates of their own, and coupons that may be limited to lines or to a plan."""
    currency, lines = given.get("currency", "USD"), given["lines"]
    keys = [str(each.get("id", i)) for i, each in enumerate(lines)]
    nets = [cents(first(each, "amount_cents", "net_cents"), currency) for each in lines]
    used = [each for each in given.get("coupons") or () if each.get("percent") != "0"]
    made = [coupon(each, f"coupon {i}", currency, _limited(each, lines, keys)) for i, each in enumerate(used)]
    taken = discounts(made, nets, keys, order=peer.coupon_order)
    offs = [sum((each.amounts[i] for each in taken), Money.zero(currency)) for i in range(len(nets))]
    taxed = tax_lines(
        [TaxedLine(net - off, _rates(each)) for net, off, each in zip(nets, offs, lines, strict=True)],
        rounding=peer.tax_rounding,
    )
    zero = Money.zero(currency)
    net = sum(nets, zero) - sum(offs, zero)
    return {
        "per_line_discount_cents": [each.minor for each in offs],
        "per_line_tax_cents": [each.minor for each in taxed.per_line],
        "per_tax_cents": [each.amount.minor for each in taxed.amounts],
        "discount_cents": sum(offs, zero).minor,
        "net_cents": net.minor,
        "tax_cents": taxed.total.minor,
        "total_cents": (net + taxed.total).minor,
    }


def _limited(given: Given, lines: list[Given], keys: list[str]) -> list[str]:
    plan = given.get("limited_to_plan")
    return [
        key
        for key, line in zip(keys, lines, strict=True)
        if key in (given.get("limited_to") or ()) or (plan is not None and line.get("plan") == plan)
    ]


def _rates(line: Given) -> tuple[TaxRate, ...]:
    percents = line["tax_percents"] if "tax_percents" in line else [line.get("tax_percent") or "0"]
    return tuple(TaxRate(code=f"{i}: {each}", percent=number(each)) for i, each in enumerate(percents))


def credit_note(given: Given, peer: Peer) -> Results:
    lines = [cents(each) for each in given["lines_cents"]]
    net = sum(lines, Money.zero("USD"))
    percent = number(given.get("discount_percent"))
    taken = discounts([Coupon(code="discount", percent=percent)], lines) if percent else ()
    discount = sum((each.total for each in taken), Money.zero("USD"))
    tax_amount = taxes([TaxRate(code="tax", percent=number(given.get("tax_percent")))], [net - discount], "USD")[
        0
    ].amount
    total = net - discount + tax_amount
    balance = cents(given.get("paid_from_balance_cents", 0))
    parts = _credited(given.get("credit_lines", "all"), creditable(lines, discount, tax_amount))
    credited_total = sum((each.total for each in parts), Money.zero("USD"))
    back = refund(credited_total, balance)
    return {
        "invoice": {
            "net": net.minor,
            "discount": discount.minor,
            "tax": tax_amount.minor,
            "total": total.minor,
            "due": (total - balance).minor,
        },
        "net_before_discount": sum(each.net.minor for each in parts),
        "tax": sum(each.tax.minor for each in parts),
        "total": credited_total.minor,
        "per_line": [{"net": each.net.minor, "tax": each.tax.minor, "total": each.total.minor} for each in parts],
        "credited_to_balance": back.to_balance.minor,
        "refunded": back.refunded.minor,
    }


def _credited(wanted: Any, lines: tuple[CreditableLine, ...]) -> list[CreditableLine]:
    if wanted == "all":
        return [credited(line) for line in lines]
    made = []
    for each in wanted:
        index, amount = (each["line"], each.get("amount_cents")) if isinstance(each, dict) else (each, None)
        made.append(credited(lines[index], cents(amount) if amount is not None else None))
    return made


def credit_note_unused_days(given: Given, peer: Peer) -> Results:
    unused = Fraction(given["period_days"] - given["used_days"], given["period_days"])
    return _note(unused_credit(cents(given["amount_cents"]), unused, Fraction(given["tax_percent"])))


def credit_note_amount(given: Given, peer: Peer) -> Results:
    amount = cents(given["credited_amount_cents"])
    return _note(unused_credit(amount, Fraction(1), Fraction(given["tax_percent"])))


def credit_note_total(given: Given, peer: Peer) -> Results:
    return _note(CreditableLine(cents(given["sub_total_cents"]), Money.zero("USD"), cents(given["tax_cents"])))


def _note(note: CreditableLine) -> Results:
    return {"sub_total_cents": note.net.minor, "tax_cents": note.tax.minor, "total_cents": note.total.minor}


def credit_on_line(given: Given, peer: Peer) -> Results:
    currency, listed = given.get("currency", "USD"), given["credits"]
    amount = Money.from_major(number(given["amount"]), currency)
    worth = [
        each["amount"] if isinstance(each, dict) else each for each in ([listed] if isinstance(listed, str) else listed)
    ]
    credits = [Credit(id=f"{i:06}", left=Money.from_major(number(each), currency)) for i, each in enumerate(worth)]
    spending = spend(credits, amount)
    return {
        "credits_applied": amount - spending.unpaid,
        "total": spending.unpaid,
        "per_credit": [part for _, part in spending.consumed],
    }


def wallet_top_up(given: Given, peer: Peer) -> Results:
    money = top_up(number(given["credits"]), number(given["credit_rate"]), given["currency"])
    return {"credits": Fraction(money.major()) / Fraction(given["credit_rate"]), "balance_cents": money.minor}


def currency_precision(given: Given, peer: Peer) -> Results:
    return {"decimals": exponent(given["currency"])}


def round_money(given: Given, peer: Peer) -> Results:
    return {"amount": Money.from_major(number(given["amount"]), given["currency"])}


def sum_round_order(given: Given, peer: Peer) -> Results:
    amounts, currency = [number(each) for each in given["amounts"]], given["currency"]
    rounded = [Money.from_major(each, currency) for each in amounts]
    return {
        "round_each_then_sum": sum(rounded, Money.zero(currency)),
        "sum_then_round": Money.from_major(sum(amounts, Decimal(0)), currency),
    }


def format_major(given: Given, peer: Peer) -> Results:
    return {"text": f"{cents(given['minor'], given['currency']).major():f}"}


def money_arithmetic(given: Given, peer: Peer) -> Results:
    currency = given.get("currency", "USD")
    values = [int(each) for each in given.get("args_minor") or ()]
    currencies = given.get("currencies", [currency] * len(values))
    amounts = [Money(value, code) for value, code in zip(values, currencies, strict=True)]
    try:
        match given["operation"]:
            case "add" | "sum":
                found = sum(amounts[1:], amounts[0]) if amounts else Money.zero(currency)
            case "subtract":
                found = amounts[0] - amounts[1]
            case "negate":
                found = -amounts[0]
            case "abs":
                found = abs(amounts[0])
            case "min":
                found = min(amounts)
            case "max":
                found = max(amounts)
            case "compare" | "less_than" | "greater_than" | "equal":
                return _compared(*amounts)
            case "multiply":
                found = amounts[0].times(values[1])
            case "divide":
                found = amounts[0].times(Fraction(1, values[1]))
            case "(1000+500)*2-1000":
                found = (Money(1000, currency) + Money(500, currency)).times(2) - Money(1000, currency)
            case other:
                raise Rejected("unknown_operation", other)
    except (CurrencyMismatch, ZeroDivisionError):
        return {"error": True}
    return {"minor": found.minor, "error": False}


def _compared(left: Money, right: Money) -> Results:
    return {"less": left < right, "greater": left > right, "equal": left == right, "error": False}


def distribute_discount(given: Given, peer: Peer) -> Results:
    lines = [cents(each) for each in given["lines_cents"]]
    fixed = Coupon(code="discount", amount=cents(given["discount_cents"]).major(), currency="USD")
    taken = discounts([fixed], lines)[0].amounts
    return {"net_lines_cents": [(line - off).minor for line, off in zip(lines, taken, strict=True)]}


def allocate(given: Given, peer: Peer) -> Results:
    weights = given["weights"]
    by_key = given["tie_break"] == "key"
    order = sorted(range(len(weights)), key=lambda i: weights[i]["key"]) if by_key else list(range(len(weights)))
    whole = Money.from_major(number(given["amount"]), given["currency"])
    parts = dict(zip(order, whole.allocate([Fraction(weights[i]["weight"]) for i in order]), strict=True))
    return {"allocations": [{"key": each["key"], "amount": parts[i]} for i, each in enumerate(weights) if parts[i]]}


OPERATIONS = {
    "coupon_amount": coupon_amount,
    "coupon_on_lines": coupon_on_lines,
    "coupons_in_sequence": coupons_in_sequence,
    "tax": tax,
    "tax_per_line": tax_per_line,
    "discount_then_tax": discount_then_tax,
    "invoice_discount_tax": invoice_discount_tax,
    "credit_note": credit_note,
    "credit_note_unused_days": credit_note_unused_days,
    "credit_note_amount": credit_note_amount,
    "credit_note_total_adjust": credit_note_total,
    "credit_on_line": credit_on_line,
    "wallet_top_up": wallet_top_up,
    "currency_precision": currency_precision,
    "round_money": round_money,
    "sum_round_order": sum_round_order,
    "format_major": format_major,
    "money_arithmetic": money_arithmetic,
    "distribute_discount": distribute_discount,
    "allocate": allocate,
}
