"""The command line: one module a verb, every heavy import inside the command that needs it."""

from __future__ import annotations

import sys

import typer

from pilotfish.cli import (
    curate,
    demo,
    evaluate,
    generate,
    methods,
    mix,
    models,
    route,
    select,
    serve,
    tasks,
    traffic,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="pilotfish",
    help="Small models at work around a large one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    serve.serve,
    generate.generate,
    tasks.status,
    tasks.learn,
    tasks.promote,
    tasks.rollback,
    tasks.replay,
    tasks.report,
    serve.key,
    methods.methods,
    curate.curate,
    select.select,
    mix.mix,
    demo.demo,
    evaluate.evaluate,
    evaluate.compare,
    evaluate.forecast,
):
    app.command()(command)
app.command("import")(traffic.import_)
app.command("export")(traffic.export_)
app.add_typer(models.app)
app.add_typer(route.app, name="route")


def main() -> None:
    """Run the command line; an error of ours, or of a file, becomes one sentence and exit status 2."""
    from pilotfish.errors import PilotfishError

    try:
        app()
    except PilotfishError as error:
        print(f"pilotfish: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        said = f"{error.filename} cannot be read or written ({error.strerror}): name another."
        print(f"pilotfish: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
