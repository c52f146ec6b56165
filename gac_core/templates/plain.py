"""A plain chat template for models that have none: turns as text under the names of their roles.

Selected by ``MemberConfig(chat_template="plain")``. A model without training on conversations does not end its turn; it
goes on with the next one. The beginnings of turns are therefore stop strings of a request in which such a member takes
part.
"""

from __future__ import annotations

from typing import Any

from gac_core.errors import ConfigError, quote

PLAIN = "plain"
"""What selects the template."""

REMEDY = 'MemberConfig.chat_template (a Jinja template, or "plain" for a base model)'
"""What to set for a member without a chat template, for messages."""

_TURNS = """\
{%- for message in messages -%}
{{- message['role'] | capitalize + ': ' + message['content'] | trim + '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""
_ROLES = ("User", "System", "Assistant", "Tool")
# The blank line between turns first: of two stop strings the one that begins earlier ends the text.
_ENDS = tuple(f"{lines}{role}:" for role in _ROLES for lines in ("\n\n", "\n"))


def check_template(what: str, template: str | None) -> None:
    """Raises a `ConfigError` about ``what`` if a configured template is neither a Jinja template nor ``"plain"``."""
    if template is not None and template != PLAIN and "{" not in template:
        raise ConfigError(f"{what} must be a Jinja template or {PLAIN!r}, not {quote(template)}")


def plain_template(tokenizer: Any) -> str:
    """Returns the template for a Hugging Face tokenizer, with its BOS where it puts one before texts by itself."""
    ids = tokenizer.encode("a")
    starts = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return ("{{- bos_token -}}\n" if starts else "") + _TURNS


def turn_ends(template: Any) -> tuple[str, ...]:
    """Returns the strings that end an answer under a chat template; none unless it is the plain one."""
    return _ENDS if isinstance(template, str) and template.endswith(_TURNS) else ()
