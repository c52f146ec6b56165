"""Rendering of chat templates as in transformers, with limits on time and on the size of computed values.

A chat template is untrusted code that comes with a model. The sandbox of transformers keeps it from accessing Python,
but does not bound loops and strings. Here every loop, call, filter, operator and literal is counted in a `Budget`.
Within the limits, the output equals that of ``apply_chat_template`` byte for byte.

Three private functions of transformers are used, because it has no public ones: ``_compile_jinja_template`` gives the
filters, globals and extensions of its environment (the public ``render_jinja_template`` renders without limits), and
``_plain_template_data`` and ``_alias_reasoning_fields`` prepare the input; earlier versions lack the last two.
`tests/test_template_limits.py` compares the output with that of transformers.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any

from jinja2 import nodes
from jinja2.runtime import str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from gac_core.errors import ChatTemplateError
from gac_core.templates.limits import Budget, TemplateLimitError

_MAX_SOURCE = 2**19


class _Current(threading.local):
    budget: Budget | None = None


_current = _Current()


def _budget() -> Budget:
    if _current.budget is None:
        raise TemplateLimitError("its chat template is evaluated after rendering has ended")
    return _current.budget


class _Counting(NodeTransformer):
    """Inserts calls that count into a template's syntax tree."""

    def visit_Output(self, node: nodes.Output) -> Any:
        self.generic_visit(node)
        size = 0
        parts: list[nodes.Expr] = []
        for part in node.nodes:
            if isinstance(part, nodes.TemplateData):
                size += len(part.data)
            else:
                part = _own("gac_write", [part])
            parts.append(part)
        node.nodes = parts
        return [nodes.ExprStmt(_own("gac_wrote", [nodes.Const(size)])), node] if size else node

    def visit_For(self, node: nodes.For) -> Any:
        self.generic_visit(node)
        tick = _own("gac_tick", [])
        node.body.insert(0, nodes.ExprStmt(tick))
        if node.test is not None:
            node.test = nodes.And(_own("gac_tick", []), node.test)
        return node

    def visit_Concat(self, node: nodes.Concat) -> Any:
        self.generic_visit(node)
        return _own("gac_concat", node.nodes)

    def _visit_literal(self, node: Any) -> Any:
        self.generic_visit(node)
        stored = getattr(node, "ctx", "load") != "load"
        return node if stored or not node.items else _own("gac_made", [node])

    visit_List = visit_Tuple = visit_Dict = _visit_literal


def _own(name: str, arguments: list[Any]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of transformers for chat templates, with counting."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(called, MethodType) and called.__self__ is self:
            return called(*args)
        budget = _budget()
        budget.tick()
        method = getattr(called, "__wrapped__", called)
        name = getattr(method, "__name__", "")
        owner = getattr(method, "__self__", None)
        if isinstance(method, BuiltinMethodType) and isinstance(owner, (str, bytes, int)):
            if name == "join" and args:
                args = (_listed(args[0]), *args[1:])
                budget.allow_join(owner, args[0])
            budget.allow_call(name, [owner, *args], kwargs)
        elif name == "generate_lorem_ipsum":
            budget.allow_call("lipsum", args, kwargs)
        return budget.made(super().call(context, called, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _budget()
        budget.allow_operator(operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def gac_tick(self) -> bool:
        _budget().tick()
        return True

    def gac_wrote(self, size: int) -> None:
        _budget().wrote(size)

    def gac_write(self, value: Any) -> Any:
        budget = _budget()
        budget.wrote(budget.size(value))
        return value

    def gac_concat(self, *values: Any) -> Any:
        budget = _budget()
        budget.allow(sum(map(budget.size, values)))
        return budget.made(str_join(values))

    def gac_made(self, value: Any) -> Any:
        return _budget().made(value)


def _listed(values: Any) -> Any:
    """Returns a generator's values as a list, counted; other values unchanged."""
    return list(values) if isinstance(values, GeneratorType) else values


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = _budget()
        budget.tick()
        values = list(args)
        if name == "join" and len(values) > skipped:
            values[skipped] = _listed(values[skipped])
            separator = values[skipped + 1] if len(values) > skipped + 1 else kwargs.get("d", "")
            budget.allow_join(separator, values[skipped])
        budget.allow_call(name, values[skipped:], kwargs)
        return budget.made(function(*values, **kwargs))

    return counted


def _counted_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        _budget().tick()
        return function(*args, **kwargs)

    return counted


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    """The compiled template, in an environment with the filters, globals and extensions of transformers."""
    from transformers.utils import chat_template_utils

    theirs = chat_template_utils._compile_jinja_template("").environment
    own = _Environment(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    own.globals.update(theirs.globals)
    own.filters = {name: _counted_filter(name, function) for name, function in theirs.filters.items()}
    own.tests = {name: _counted_test(function) for name, function in theirs.tests.items()}
    return own.from_string(source)


def apply_template(
    tokenizer: Any,
    name: str,
    turns: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    generation_prompt: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """Renders turns like ``apply_chat_template`` of a Hugging Face tokenizer, within limits.

    Args:
        tokenizer: The Hugging Face tokenizer.
        name: The member's name, for errors.
        turns: The turns, at least one.
        tools: The tools in OpenAI's form. Default None.
        generation_prompt: Whether to append the generation prompt. Default False.
        settings: Further variables of the template. Default none.

    Raises:
        ChatTemplateError: The template reaches a limit.
        Exception: Any other exception that the template raises.
    """
    from transformers.utils import chat_template_utils

    plain = getattr(chat_template_utils, "_plain_template_data", lambda value: value)
    alias = getattr(chat_template_utils, "_alias_reasoning_fields", lambda chat: chat)
    source = tokenizer.get_chat_template(None, tools)
    if len(source) > _MAX_SOURCE:
        raise ChatTemplateError(name, f"its chat template has more than {_MAX_SOURCE} characters")
    chat = alias(plain([{key: value for key, value in turn.items() if value is not None} for turn in turns]))
    values = plain({**tokenizer.special_tokens_map, **(settings or {})})
    given = {**values, "messages": chat, "tools": plain(tools), "documents": None}
    _current.budget = Budget(given)
    try:
        return str(_compiled(source).render(**given, add_generation_prompt=generation_prompt))
    except TemplateLimitError as error:
        raise ChatTemplateError(
            name, f"{error}; set MemberConfig.chat_template, or give the prompt as a string"
        ) from error
    finally:
        _current.budget = None


def try_template(tokenizer: Any, name: str, turns: Sequence[Mapping[str, Any]], *others: Any, **options: Any) -> str:
    """Renders like `apply_template`; returns an empty string if the template rejects these turns.

    Raises:
        ChatTemplateError: The template reaches a limit, which other turns would reach too.
    """
    try:
        return apply_template(tokenizer, name, turns, *others, **options)
    except ChatTemplateError:
        raise
    except Exception:
        # Templates may raise any exception; why a probe is rejected does not matter.
        return ""
