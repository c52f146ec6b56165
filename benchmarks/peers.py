"""Features of LlamaIndex integrations, found by running each of them: the table of docs/comparison.md.

Run by ``python -m benchmarks.peers``, in an environment that also holds the packages of `PEERS`.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from benchmarks import peer_requests as requests
from benchmarks import peer_tools as tools
from benchmarks.rigs import GGUF, GaCRig, HuggingFaceRig, LlamaCPPRig

PATIENCE = 120.0

ROWS: tuple[Callable[[Any], bool], ...] = (
    requests.several_models,
    requests.templates,
    requests.echoes,
    requests.call_arguments,
    requests.unknown_arguments,
    requests.stop_strings,
    requests.penalties,
    requests.long_prompts,
    requests.time_limits,
    requests.retries,
    requests.token_counts,
    requests.logprobs,
    requests.context_window,
    requests.images,
    requests.streams,
    requests.abandoned_streams,
    requests.event_loop,
    requests.event_loop_streams,
    requests.cancelled_tasks,
    requests.together,
    requests.prefixes,
    tools.agents,
    tools.forced_calls,
    tools.call_ids,
    requests.json_mode,
    tools.objects,
    tools.object_streams,
    tools.histories,
    tools.llm_kwargs,
    tools.events,
    tools.written_down,
    tools.shared,
    requests.failing_streams,
)

PEERS = tuple(f"llama-index-llms-{name}" for name in ("huggingface", "llama-cpp", "ollama", "openai-like", "vllm"))
OF_SERVERS = (requests.long_prompts, requests.prefixes, tools.shared)


def found(row: Callable[[Any], bool], rig: Any) -> str:
    """Returns the cell of one row for one integration: yes, no, or no with the error or "never ends"."""
    if rig.remote and row in OF_SERVERS:
        return "depends on the server"
    result = ["no (never ends)"]

    def run() -> None:
        try:
            result[0] = "yes" if row(rig) else "no"
        except Exception as error:
            result[0] = f"no (`{type(error).__name__}`)"

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return result[0]


def main() -> None:
    """Prints the table.

    Raises:
        SystemExit: An integration is not installed, or the model in GGUF is missing.
    """
    for peer in PEERS:
        try:
            importlib.metadata.distribution(peer)
        except importlib.metadata.PackageNotFoundError:
            raise SystemExit(f"{peer} is not installed: pip install {' '.join(PEERS)}") from None
    torch.manual_seed(0)
    from benchmarks.remote_rigs import OllamaRig, OpenAILikeRig, ServedRig, VllmRig

    if not GGUF.exists():
        raise SystemExit(f"{GGUF} is missing: set GAC_REAL_MODELS to a folder that has gguf/smollm2.gguf")
    rigs = [GaCRig(), HuggingFaceRig(), LlamaCPPRig(), VllmRig(), OllamaRig(), OpenAILikeRig(), ServedRig()]
    out = Console(width=200, soft_wrap=True)
    out.print("| | " + " | ".join(rig.name for rig in rigs) + " |", "|" + "---|" * (len(rigs) + 1), sep="\n")
    for row in ROWS:
        label = (row.__doc__ or "").rstrip(".")
        out.print(f"| {label} | " + " | ".join(found(row, rig) for rig in rigs) + " |", markup=False)


if __name__ == "__main__":
    main()
