"""``python -m gac_core.harness``: the command line of lm-evaluation-harness, with the model ``gac`` and its tasks."""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from gac_core.errors import GaCError
from gac_core.harness import TASKS


def main() -> None:
    """Runs the command line; `TASKS` is searched for tasks unless ``--include_path`` names another folder."""
    given = {argument.partition("=")[0] for argument in sys.argv}
    if "--include_path" not in given and not {"-h", "--help"} & set(sys.argv) and len(sys.argv) > 1:
        sys.argv += ["--include_path", str(TASKS)]
    try:
        cli_evaluate()
    except GaCError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
