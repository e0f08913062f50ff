"""Percentages of transactions, with fixed fees, free allowances and bounds per transaction.

A transaction is free while both allowances last: it is among the first ones and the sum so far is within the free
amount. The one that crosses the free amount pays for the excess. Least and largest fee hold for each that is not free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

from billing.metering import Measured
from billing.money import EXACT
from billing.price import ZERO, Percentage
from billing.rated import Adjustment, Rated, Row

_PERCENT = Decimal("0.01")


def percentage(model: Percentage) -> Callable[[Measured], Rated]:
    """What rates a percentage of transactions."""
    limited = model.minimum is not None or model.maximum is not None
    free = model.free_amount is not None or model.free_transactions is not None

    def price(measured: Measured) -> Rated:
        if measured.transactions and (limited or free):
            return _by_transaction(model, measured.transactions)
        paid, count = max(measured.total, ZERO), max(measured.events, len(measured.transactions))
        if model.free_amount is not None:
            paid = max(EXACT.subtract(paid, model.free_amount), ZERO)
        if model.free_transactions is not None:
            count = max(count - model.free_transactions, 0)
        return _percentage_rated(model, paid, count, ZERO)

    return price


def _by_transaction(model: Percentage, transactions: Sequence[Decimal]) -> Rated:
    """A transaction is free while both allowances last; the one that crosses the free amount pays for the excess."""
    running = paid = correction = ZERO
    count = 0
    for i, amount in enumerate(transactions):
        running = EXACT.add(running, amount)
        base = amount
        if model.free_amount is not None or model.free_transactions is not None:
            in_count = model.free_transactions is None or i < model.free_transactions
            excess = running if model.free_amount is None else EXACT.subtract(running, model.free_amount)
            if in_count and (model.free_amount is None or excess <= 0):
                continue
            if in_count:
                base = min(amount, excess)
        fee = EXACT.fma(EXACT.multiply(base, model.percent), _PERCENT, model.fixed)
        clamped = fee if model.minimum is None else max(fee, model.minimum)
        clamped = clamped if model.maximum is None else min(clamped, model.maximum)
        paid, count = EXACT.add(paid, base), count + 1
        correction = EXACT.add(correction, EXACT.subtract(clamped, fee))
    return _percentage_rated(model, paid, count, correction)


def _percentage_rated(model: Percentage, paid: Decimal, count: int, correction: Decimal) -> Rated:
    share = EXACT.multiply(EXACT.multiply(paid, model.percent), _PERCENT)
    rows: list[Row] = [("percentage", paid, model.percent, ZERO, share, True)]
    amount = share
    if model.fixed:
        fixed = EXACT.multiply(Decimal(count), model.fixed)
        rows.append(("transactions", Decimal(count), model.fixed, ZERO, fixed, False))
        amount = EXACT.add(amount, fixed)
    if not correction:
        return Rated(amount, paid, rows)
    reason = Adjustment("for the least and largest fee per transaction", correction)
    return Rated(EXACT.add(amount, correction), paid, rows, (reason,))
