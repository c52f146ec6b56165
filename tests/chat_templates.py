"""Chat templates of several families, and members that have them."""

from __future__ import annotations

import copy

import pytest
from conftest import EMBEDDED, QUESTION, SHARED, tokenizer_of

from gac_core.chat.conversation import Conversation, Message
from gac_core.chat.rendered_prompt import uses_native_tools
from gac_core.chat.tools import Tool, ToolCall
from gac_core.tokenization.tokenizer import MemberTokenizer

WITH_TEMPLATES = [
    *EMBEDDED,
    *(str(SHARED / "tokenizers" / n) for n in ("llama-3", "mistral-tekken", "phi-3", "qwen2.5")),
]
MARKED = [
    pytest.param(f, marks=pytest.mark.shared if "shared" in f else (), id=f.split("/")[-1]) for f in WITH_TEMPLATES
]
PLAIN = [
    QUESTION,
    QUESTION[1:],
    [*QUESTION, {"role": "assistant", "content": "Halkus."}, {"role": "user", "content": "Zürich  漢字 😀?\n"}],
]


# Small templates in the manner of well-known families.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
    "{% endif %}{{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
IGNORING = (
    "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}\n{% elif m.role == 'assistant' %}"
    "A: {{ m.content }}\n{% endif %}{% endfor %}A: "
)
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}<|assistant|>"
)
QWEN3 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}Write <tool_call>\n{...}\n</tool_call>.<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if m.reasoning_content and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "<|im_end|>\n{% endif %}{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "<|start|>assistant<|end|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}{% endif %}<|eot|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<|start|>assistant<|end|>\n\n"
)
OPENING = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|><think>\n"
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
SYSTEM, USER, SAID, AGAIN = (
    Message("system", "Be brief."),
    Message("user", "Where?"),
    Message("assistant", "Here."),
    Message("user", "And when?"),
)
TOOL = Tool("weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("c1", "weather", '{"city":  "Halkus"}')
CALLED = [
    USER,
    Message("assistant", "Let me see.", tool_calls=(CALL,), reasoning="I need the weather."),
    Message("tool", "rain", tool_call_id="c1", name="weather"),
]


def member(template, folder=EMBEDDED[0], name="m"):
    """A member with a chat template; None: the folder's own."""
    if template is None:
        return MemberTokenizer(tokenizer_of(folder), name)
    tokenizer = copy.deepcopy(tokenizer_of(folder))
    tokenizer.chat_template = template
    return MemberTokenizer(tokenizer, name)


def form_of(loaded, tool_format="auto"):
    return "native" if uses_native_tools(loaded, Conversation([USER], [TOOL], tool_format=tool_format)) else "common"
