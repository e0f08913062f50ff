"""Rated lines per second on one core, beside the same arithmetic in bare `Decimal` loops in the same run.

    python -m benchmarks.rating [--lines 5000] [--json]

A line is a quantity turned into an exact amount with its breakdown, and rounded to cents. Exit code 1 if the kernel is
slower than half of the bare loop.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from time import process_time

from billing.metering import Measured
from billing.price import Cell, Charge, Graduated, Matrix, PerUnit, Tier
from billing.rating import rate_all

CENT = Decimal("0.01")
ROUNDS = 7  # the best of them counts: others share the machine
BATCH = 100  # lines that are kept at a time, as for an invoice run's page
LEAST_SHARE = 0.5  # promised in the issue of the kernel

TIERS = tuple(
    Tier(Decimal(500 * (i + 1)) if i < 19 else None, Decimal("12.00") - Decimal(i) / 2, Decimal(i)) for i in range(20)
)
CELLS = tuple(Cell((f"region-{i}",), Decimal("0.0031") + Decimal(i) / 1000) for i in range(50))


def quantities(lines: int) -> list[Measured]:
    """Quantities that reach every tier, with fractions, split into all cells."""
    totals = [Decimal(i * 7919 % 1_200_000) / 100 for i in range(lines)]
    return [Measured(total, tuple((cell.values, total) for cell in CELLS)) for total in totals]


def bare_flat(given: Sequence[Measured]) -> int:
    unit, lines = Decimal("0.0110"), []
    for measured in given:
        amount = measured.total * unit
        lines.append((int(amount.quantize(CENT, ROUND_HALF_UP) * 100), amount))
    return sum(minor for minor, _ in lines)


def bare_tiers(given: Sequence[Measured]) -> int:
    table = [(tier.up_to, tier.unit, tier.flat) for tier in TIERS]
    lines = []
    for measured in given:
        quantity, amount, low = measured.total, Decimal(0), Decimal(0)
        for up_to, unit, flat in table:
            if up_to is None or quantity <= up_to:
                amount += (quantity - low) * unit + flat
                break
            amount += (up_to - low) * unit + flat
            low = up_to
        lines.append((int(amount.quantize(CENT, ROUND_HALF_UP) * 100), amount))
    return sum(minor for minor, _ in lines)


def bare_matrix(given: Sequence[Measured]) -> int:
    prices = {cell.values: cell.unit for cell in CELLS}
    lines = []
    for measured in given:
        amount = Decimal(0)
        for values, units in measured.cells:
            amount += units * prices[values]
        lines.append((int(amount.quantize(CENT, ROUND_HALF_UP) * 100), amount))
    return sum(minor for minor, _ in lines)


def kernel(charge: Charge) -> Callable[[Sequence[Measured]], int]:
    """The same by the kernel in batches, each line with all its steps."""

    def run(given: Sequence[Measured]) -> int:
        total = 0
        for i in range(0, len(given), BATCH):
            for minor, _ in rate_all(charge, given[i : i + BATCH], "USD"):
                total += minor
        return total

    return run


def best(run: Callable[[Sequence[Measured]], int], given: Sequence[Measured]) -> tuple[float, int]:
    """Lines per second of processor time in the fastest round, and what the lines add up to."""
    fastest, total = float("inf"), 0
    for _ in range(ROUNDS):
        began = process_time()
        total = run(given)
        fastest = min(fastest, process_time() - began)
    return len(given) / fastest, total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=5_000, help="lines per round")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    charges = {
        "flat": (bare_flat, Charge("c", "C", PerUnit(Decimal("0.0110")), meter="m")),
        "20 tiers": (bare_tiers, Charge("c", "C", Graduated(TIERS), meter="m")),
        "50 cells": (bare_matrix, Charge("c", "C", Matrix(("region",), CELLS), meter="m")),
    }
    rows: list[dict[str, str | int | float]] = []
    given = quantities(options.lines)
    for name, (bare, charge) in charges.items():
        bare_speed, bare_total = best(bare, given)
        speed, total = best(kernel(charge), given)
        assert total == bare_total, f"{name}: {total} is not {bare_total}"
        rows.append(
            {"price": name, "lines_per_s": round(speed), "bare_per_s": round(bare_speed), "share": speed / bare_speed}
        )
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'price':<10} {'lines/s':>10} {'bare/s':>10} {'share':>6}")
        for row in rows:
            print(f"{row['price']:<10} {row['lines_per_s']:>10,} {row['bare_per_s']:>10,} {row['share']:>6.2f}")
    return 0 if all(float(row["share"]) >= LEAST_SHARE for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
