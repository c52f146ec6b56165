"""A Llama that fails on command, in whichever process it runs: a model's own code, as `trust_remote_code` loads it.

Copied into model folders by `faulty_folders.py`. The configuration names a folder in which a file orders a fault.
"""

import json
import os
import signal
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM


class FaultyLlamaForCausalLM(LlamaForCausalLM):
    """A Llama whose next forward of a kind fails once the file ``fault.json`` exists."""

    def __init__(self, config):
        super().__init__(config)
        self._orders = Path(config.fault_folder)
        # How many forwards went well since an order was given.
        self._order, self._passed = None, 0
        with (self._orders / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **given):
        fault = self._take(input_ids.shape[1])
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "sleep":
            time.sleep(3600)
        if fault == "memory":
            raise torch.OutOfMemoryError("out of memory, as ordered")
        given |= {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": past_key_values}
        output = super().forward(input_ids=input_ids, **given)
        if fault == "nan":
            output.logits = torch.full_like(output.logits, float("nan"))
        return output

    def _take(self, tokens):
        """Returns the fault ordered for a forward of so many tokens, and removes the order."""
        path = self._orders / "fault.json"
        if not path.exists():
            return None
        order = json.loads(path.read_text())
        phase = "decode" if tokens == 1 else "verify" if tokens <= 8 else "prefill"
        if order["phase"] not in (phase, "any"):
            return None
        self._passed = self._passed + 1 if self._order == order["number"] else 0
        self._order = order["number"]
        if self._passed < order["skip"]:
            return None
        try:
            path.rename(self._orders / "taken.json")
        except FileNotFoundError:
            return None
        return order["fault"]
