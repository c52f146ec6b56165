"""A plain chat template for base models: each message as text after the name of its role.

Selected by ``MemberConfig(chat_template="plain")``. A base model does not end its turn but continues with the next one.
The beginnings of turns are therefore stop strings of requests in which such a member takes part.
"""

from __future__ import annotations

from typing import Any

from gac_core.errors import ConfigError, quote

PLAIN = "plain"
"""The value of `MemberConfig.chat_template` that selects this template."""

REMEDY = 'MemberConfig.chat_template (a Jinja template, or "plain" for a base model)'
"""The setting to name in messages about a member without a chat template."""

_TURNS = """\
{%- for message in messages -%}
{{- message['role'] | capitalize + ': ' + message['content'] | trim + '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""
_ROLES = ("User", "System", "Assistant", "Tool")
# With the blank line between turns first: of two stop strings that match, the one that begins earlier ends the text.
_ENDS = tuple(f"{lines}{role}:" for role in _ROLES for lines in ("\n\n", "\n"))


def check_template(what: str, template: str | None) -> None:
    """Raises if a configured template is neither a Jinja template nor ``"plain"``.

    Args:
        what: The name of the setting, for the error.
        template: The template, or None.

    Raises:
        ConfigError: The template is neither.
    """
    if template is not None and template != PLAIN and "{" not in template:
        raise ConfigError(f"{what} must be a Jinja template or {PLAIN!r}, not {quote(template)}")


def plain_template(tokenizer: Any) -> str:
    """Returns the template for a Hugging Face tokenizer, with a BOS if the tokenizer adds one to texts."""
    ids = tokenizer.encode("a")
    starts = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return ("{{- bos_token -}}\n" if starts else "") + _TURNS


def turn_ends(template: Any) -> tuple[str, ...]:
    """Returns the stop strings of a chat template: the beginnings of turns for the plain template, else none."""
    return _ENDS if isinstance(template, str) and template.endswith(_TURNS) else ()
