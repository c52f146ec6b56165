"""The ``gac`` command line: `app`."""

from __future__ import annotations

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise SystemExit("the gac command needs typer and rich: pip install 'gac-ensemble[inspect]'") from error

from gac_core.cli.calibrate import calibration
from gac_core.cli.calibrate_documents import calibration_of_documents
from gac_core.cli.chat import chat
from gac_core.cli.doctor import doctor
from gac_core.cli.eval import evaluate
from gac_core.cli.inspect import inspect
from gac_core.cli.plan import plan
from gac_core.cli.serve import serve
from gac_core.cli.sweep import sweep
from gac_core.cli.trace import trace

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(chat)
app.command("calibrate")(calibration)
app.command("calibrate-documents")(calibration_of_documents)
app.command()(doctor)
app.command("eval")(evaluate)
app.command()(inspect)
app.command()(plan)
app.command()(serve)
app.command()(sweep)
app.command()(trace)


@app.callback()
def gac() -> None:
    """Ensembles of open language models at the token level."""
