"""The command `tallybook`. Exit codes: 0 done, 1 refused or differences found, 2 wrong usage, 69 something is
unreachable, 70 a bug, 78 bad configuration, 130 interrupted.

A group of commands lives in a module `services/cli_<what>.py` with a function `register(app)` that adds them; the table
below names it. Only the module of the command that was asked for is imported, so that `tallybook status` stays quick.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

import typer

from billing.errors import Rejected
from infra.errors import Conflict, Misconfigured, Poison, Transient

DONE, REFUSED, USAGE, UNREACHABLE, BUG, MISCONFIGURED, INTERRUPTED = 0, 1, 2, 69, 70, 78, 130

MODULES = {
    "up": "services.cli_stack",
    "down": "services.cli_stack",
    "status": "services.cli_stack",
    "run": "services.cli_run",
    "config": "services.cli_config",
    "schemas": "services.cli_schemas",
    "catalog": "services.cli_catalog",
    "price": "services.cli_price",
    "scenario": "services.cli_scenario",
    "usage": "services.cli_usage",
    "meters": "services.cli_meters",
    "customers": "services.cli_customers",
    "subscriptions": "services.cli_subscriptions",
    "entitlements": "services.cli_entitlements",
    "invoices": "services.cli_invoices",
    "jobs": "services.cli_jobs",
    "clock": "services.cli_clock",
    "keys": "services.cli_keys",
    "tenants": "services.cli_tenants",
    "replay": "services.cli_replay",
    "reconcile": "services.cli_reconcile",
    "log": "services.cli_log",
    "demo": "services.cli_demo",
}
"""Command -> the module that defines it."""


def application(commands: Sequence[str]) -> typer.Typer:
    """The command line with the modules of `commands` mounted."""
    app = typer.Typer(
        name="tallybook",
        help="An event-sourced usage billing system on Kafka.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(lambda: None)  # keeps the names of commands even if there is only one
    for module in dict.fromkeys(MODULES[command] for command in commands):
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = words[0] if words and words[0] in MODULES else None
    app = application([asked] if asked else list(MODULES))
    try:
        result = typer.main.get_command(app).main(words, prog_name="tallybook", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except typer.TyperException as error:
        # A usage error knows how to show itself with the usage line; the class that says so is private to Typer.
        getattr(error, "show", lambda: None)()
        return USAGE
    except (Rejected, Conflict, Poison) as error:
        return _fail(str(error), REFUSED)
    except Transient as error:
        return _fail(str(error), UNREACHABLE)
    except Misconfigured as error:
        return _fail(str(error), MISCONFIGURED)
    except BrokenPipeError:
        # `tallybook invoices list | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return result if isinstance(result, int) else DONE


def _fail(said: str, code: int) -> int:
    sys.stderr.write(f"tallybook: {said}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
