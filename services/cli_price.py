"""`tallybook price`: what a charge costs for what was used, with the arithmetic; needs no server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from billing.metering import UsageEvent
    from billing.rating import Rated
    from services.price_request import Given, PriceRequest
    from services.shapes import Fault

REFUSED, USAGE = 1, 2
_WIDTH = 72
_AMOUNT = 18


def register(app: typer.Typer) -> None:
    """Add `price`."""
    app.command()(price)


def price(
    request: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Request as YAML or JSON; - reads it from standard input.")
    ] = None,
    charge: Annotated[
        str | None,
        typer.Option(
            "--charge", help="The charge, such as '{model: {type: per_unit, unit: 0.01}}'; with --catalog its key."
        ),
    ] = None,
    catalog: Annotated[
        Path | None, typer.Option("--catalog", exists=True, dir_okay=False, help="Catalogue file with the charge.")
    ] = None,
    plan: Annotated[str | None, typer.Option("--plan", help="Key of the plan in the catalogue.")] = None,
    currency: Annotated[str | None, typer.Option("--currency", help="ISO 4217 code; USD unless given.")] = None,
    quantity: Annotated[
        str | None, typer.Option("--quantity", "-q", help="What was used, such as 1407 or 10.5.")
    ] = None,
    cell: Annotated[
        list[str] | None, typer.Option("--cell", help="Quantity of one combination of dimensions: eu,fast=100.")
    ] = None,
    transaction: Annotated[
        list[str] | None, typer.Option("--transaction", help="Amount of one transaction, in order of time.")
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option(
            "--events", exists=True, dir_okay=False, help="Usage events, .csv or .jsonl, as for `usage send`."
        ),
    ] = None,
    period: Annotated[
        str | None,
        typer.Option("--period", metavar="START/END", help="What the events are billed for; a level needs it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a charge costs for what was used: the amount, its parts, and the arithmetic.

    Exit code 1: charge or usage are refused, each mistake with its field; 2: the flags do not fit together.
    """
    from billing.errors import Rejected
    from services import price_request
    from services.catalog_file import BadCatalog

    if (catalog is None) != (plan is None) or (catalog is not None and charge is None):
        raise typer.BadParameter("--catalog, --plan and --charge name a charge together")
    source = str(request or catalog or "")
    try:
        given = _given(request, None if catalog else charge)
        _add_flags(given, currency, quantity, cell, transaction, catalog is not None)
        _add_period(given, period)
        priced = price_request.from_catalog(catalog, plan or "", charge or "") if catalog else None
        asked = price_request.complete(given, priced, _events(events) if events else ())
        _report(asked, as_json)
    except price_request.BadRequest as e:
        _refuse([(line, fault) for line, fault in e.found], source, as_json)
    except BadCatalog as e:
        _refuse(list(e.found), source, as_json)
    except Rejected as e:
        _refuse([(None, _fault(e))], "", as_json)


def _given(request: Path | None, charge: str | None) -> Given:
    from services import price_request

    if request is not None and charge is not None:
        raise typer.BadParameter("the file holds the charge", param_hint="--charge")
    if charge is not None:
        return price_request.from_text(charge.encode(), "charge")
    if request is None:
        return price_request.Given()
    if str(request) == "-":
        return price_request.from_text(sys.stdin.buffer.read())
    try:
        return price_request.from_text(request.read_bytes())
    except OSError as e:
        raise typer.BadParameter(f"{request}: {e.strerror}", param_hint="FILE") from e


def _add_flags(
    given: Given,
    currency: str | None,
    quantity: str | None,
    cells: list[str] | None,
    transactions: list[str] | None,
    priced: bool,
) -> None:
    """Flags say what the file leaves open."""
    if currency is not None and priced:
        raise typer.BadParameter("the plan has its currency", param_hint="--currency")
    said: dict[str, Any] = {"currency": currency, "quantity": quantity, "transactions": transactions}
    said["cells"] = [_cell(each) for each in cells] if cells else None
    for name, value in said.items():
        if value is None or value == []:
            continue
        if name in given.data:
            raise typer.BadParameter(f"the file says {name} already", param_hint=f"--{name.rstrip('s')}")
        given.data[name] = value


def _add_period(given: Given, text: str | None) -> None:
    if text is None:
        return
    start, slash, end = text.partition("/")
    if not slash:
        said = f"{text!r}: write it as 2026-06-01T00:00:00Z/2026-07-01T00:00:00Z"
        raise typer.BadParameter(said, param_hint="--period")
    if "period" in given.data:
        raise typer.BadParameter("the file says period already", param_hint="--period")
    given.data["period"] = {"start": start, "end": end}


def _cell(text: str) -> dict[str, Any]:
    values, equals, quantity = text.rpartition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r}: write values and quantity, such as eu,fast=100", param_hint="--cell")
    return {"values": values.split(","), "quantity": quantity}


def _events(path: Path) -> list[UsageEvent]:
    from billing.metering import UsageEvent
    from services import usage_file
    from services.price_request import BadRequest
    from services.shapes import Fault

    form = usage_file.format_of(path)
    if form is None:
        raise typer.BadParameter(f"{path} is neither .csv nor .jsonl", param_hint="--events")
    made, bad = [], []
    with path.open("rb") as file:
        for line in usage_file.read(file, form, "file"):
            found = line.event
            if isinstance(found, usage_file.Fault):
                bad.append((found.line, Fault("invalid_event", found.detail, f"events.{found.field}".rstrip("."))))
                continue
            made.append(
                UsageEvent(
                    id=found.id,
                    source=found.source,
                    type=found.type,
                    customer=found.customer,
                    time=found.time,
                    properties={name: str(value) for name, value in found.properties.items()},
                )
            )
    if bad:
        raise BadRequest(bad)
    return made


def _report(asked: PriceRequest, as_json: bool) -> None:
    from billing.money import Money
    from billing.rating import rate

    rated = rate(asked.charge, asked.measured)
    amount = Money.from_major(rated.amount, asked.currency)
    if as_json:
        typer.echo(json.dumps(_as_json(asked, rated, amount)))
        return
    from billing.rated import figure, price_figure

    quantity = "" if asked.charge.meter is None else figure(asked.measured.total)
    rows = [f"{asked.charge.name:<{_WIDTH - _AMOUNT}}{quantity:>{_AMOUNT}}".rstrip()]
    for step, row in zip(rated.steps, rated.rows, strict=True):
        arithmetic = rated._replace(parts=(row,), adjustments=()).text
        rows.append(_row(f"{step.label:<20}{arithmetic}", price_figure(step.amount)))
    rows += [_row(each.reason, price_figure(each.amount)) for each in rated.adjustments]
    if rated.amount != amount.major():
        rows.append(_row("exactly", price_figure(rated.amount)))
    rows.append(_row(asked.currency, f"{amount.major():,f}"))
    typer.echo("\n".join([*rows, f"= {rated.text}"]))


def _row(left: str, amount: str) -> str:
    return f"  {left:<{_WIDTH - _AMOUNT - 2}}{amount:>{_AMOUNT}}"


def _as_json(asked: PriceRequest, rated: Rated, amount: Any) -> dict[str, Any]:
    return {
        "charge": asked.charge.key,
        "quantity": f"{asked.measured.total:f}",
        "priced_quantity": f"{rated.quantity:f}",
        "amount": {"minor": amount.minor, "currency": amount.currency, "decimal": f"{amount.major():f}"},
        "exact": f"{rated.amount:f}",
        "steps": [
            {
                "label": each.label,
                "quantity": f"{each.quantity:f}",
                "unit": f"{each.unit:f}",
                "flat": f"{each.flat:f}",
                "amount": f"{each.amount:f}",
                "percent": each.percent,
            }
            for each in rated.steps
        ],
        "adjustments": [{"reason": each.reason, "amount": f"{each.amount:f}"} for each in rated.adjustments],
        "explanation": rated.text,
    }


def _fault(refused: Any) -> Fault:
    from services.shapes import Fault

    return Fault(refused.code, refused.detail, refused.field)


def _refuse(found: list[tuple[int | None, Fault]], source: str, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps({"faults": [{"line": line, **asdict(fault)} for line, fault in found]}))
    for line, fault in found:
        where = f"{source}:{line}: " if source and line else ""
        name = f"{fault.field}: " if fault.field else ""
        typer.echo(f"{where}{name}{fault.detail} [{fault.code}]", err=True)
    raise typer.Exit(REFUSED)
