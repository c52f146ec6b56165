"""The commands of ``gac chat``: lines that begin with a slash."""

from __future__ import annotations

from dataclasses import dataclass

from gac_core.errors import RequestError, listed, quote

COMMANDS = {
    "weights": "1:2:4 sets the weights of the members, in their order; default: those of the ensemble",
    "threshold": "0.7 lets the gate decide alone at or above it; off: every step is ensembled; default",
    "gate": "NAME sets the gate; default",
    "combine": "RULE sets how distributions are combined, for example geometric; default",
    "stats": "shows what the last answer cost, and how far the members agreed",
    "trace": "FILE.html (or .json) writes a page about the last answer",
    "system": "TEXT sets the system message; none removes it",
    "reset": "forgets the conversation; settings stay",
    "help": "shows the commands",
    "quit": "leaves, as Ctrl-D does",
}
"""What each command does, by its name. Commands that set something show it if they are given no value."""


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: A key of `COMMANDS`.
        argument: What follows the name, without white space around it; may be empty.
    """

    name: str
    argument: str = ""


def parse_line(line: str) -> Command | str:
    """Returns a line as a command, or as the text of a message.

    A message that begins with a slash is written with two of them.

    Raises:
        RequestError: No command has this name, or it takes no value.
    """
    if not line.startswith("/"):
        return line
    if line.startswith("//"):
        return line[1:]
    name, argument = [*line[1:].split(maxsplit=1), "", ""][:2]
    if name not in COMMANDS:
        known = listed(f"/{each}" for each in COMMANDS)
        raise RequestError(
            f"unknown command {quote('/' + name)}; commands are: {known}. "
            "A message that begins with a slash is written with two of them"
        )
    command = Command(name, argument.strip())
    if command.argument and name in ("stats", "reset", "help", "quit"):
        raise RequestError(f"/{name} takes no value, not {quote(command.argument)}")
    return command
