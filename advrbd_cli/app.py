"""The commands, gathered. Nothing here imports torch: help, version and usage errors answer at once."""

import os
import sys
from typing import Annotated

import typer

from advrbd.version import __version__
from advrbd_cli import bench, clean, demo, drill, env, exits, launch, poison, scan, schema, verify
from advrbd_cli.settings import Configured

app = typer.Typer(
    name="advrbd",
    help="Find backdoor-poisoned images in a dataset you don't control, and get a clean one back.",
    epilog="Exit codes: 0 no suspects, 1 suspects found, 2 anything else went wrong, 130, 143 or 129 interrupted.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("scan", cls=Configured, epilog=scan.EXAMPLES)(scan.scan)
app.command("clean", cls=Configured, epilog=clean.EXAMPLES)(clean.clean)
app.command("verify", epilog=verify.EXAMPLES)(verify.verify)
app.command("poison", epilog=poison.EXAMPLES)(poison.poison)
app.command("drill", cls=Configured, epilog=drill.EXAMPLES)(drill.drill)
app.add_typer(bench.app, name="bench")
app.command("demo")(demo.demo)
app.command("schema", epilog=schema.EXAMPLES)(schema.schema)
app.command("env")(env.env)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"advrbd {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("--version", "-V", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Find backdoor-poisoned images in a dataset you don't control, and get a clean one back."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(exits.FAILED)


def main() -> None:
    """The console script."""
    exits.guard(launch.part_of(app, sys.argv[1:2], os.environ))
