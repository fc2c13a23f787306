"""What this project's step is timed beside: the plain training loop, with the model and the layers that others have.

transformers      LlamaForCausalLM at full rank, with its own loss
peft              the same with PEFT's LoRA layers
textbook          the same with the layer of papers and public code, y = xWᵀ + s·dropout(x)AᵀBᵀ; dropout 0
textbook+dropout  the same with dropout 0.1
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from relora_lab import data, lowrank, models, seeds
from relora_lab.data import Corpus
from relora_lab.settings import RunConfig

DROPOUT = {"textbook": 0.0, "textbook+dropout": 0.1}
NOT_RUN = {"peft": "not run (pip install peft)"}


class Unmerged(nn.Module):
    """y = xWᵀ + s·dropout(x)AᵀBᵀ with W frozen and s = 1."""

    def __init__(self, base: nn.Linear, rank: int, dropout: float) -> None:
        super().__init__()
        self.weight = base.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(self.weight.new_zeros(rank, base.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(base.out_features, rank))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()  # nn.Dropout(0) would draw a mask too
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B) * self.scale


class Loop:
    """The loop of a training script: a batch, its loss, gradients clipped at 1, AdamW."""

    def __init__(self, model: nn.Module, batch: Callable[[int], Tensor], run: RunConfig) -> None:
        self.model, self.steps = model.train(), 0
        self._batch, self._device = batch, run.training.device
        self._autocast = run.training.precision == "bf16-autocast"
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=run.optimizer.lr, weight_decay=0.0, fused=True)

    def loss(self) -> Tensor:
        """The loss of the next batch."""
        batch = self._batch(self.steps).to(self._device)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self._autocast):
            return self.model(input_ids=batch, labels=batch, use_cache=False).loss

    def step(self) -> Tensor:
        """An optimizer step; the loss before it."""
        loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps += 1
        return loss.detach()


def missing(method: str) -> str | None:
    """Why a side cannot run, if it cannot."""
    return NOT_RUN.get(method) if importlib.util.find_spec("peft") is None else None


def begin(method: str, rank: int | None, run: RunConfig, corpus: Corpus) -> Loop:
    """A peer with the weights and the batches that the run begins with; of its factors B is zero."""
    batch = data.Batches(
        corpus,
        batch_size=run.data.batch_size,
        sequence_length=run.data.sequence_length,
        seed=seeds.derive(run.training.seed, "data"),
    )
    model: nn.Module = plain(run, corpus.vocab_size)
    if rank is not None:
        model = with_peft(model, rank) if method == "peft" else with_textbook(model, rank, DROPOUT[method])
    return Loop(model, batch, run)


def plain(run: RunConfig, vocabulary: int) -> LlamaForCausalLM:
    """The model as transformers has it, without our blocks, with the weights that the run begins with."""
    ours = models.build(run.model.shape, vocab_size=vocabulary, seed=seeds.derive(run.training.seed, "model"))
    model = LlamaForCausalLM(models.llama_config(run.model.shape, vocab_size=vocabulary))
    model.load_state_dict(ours.state_dict())
    return model.to(run.training.device)


def with_textbook(model: nn.Module, rank: int, dropout: float) -> nn.Module:
    """The model with the textbook's layer in place of each projection."""
    for name, linear in lowrank.linear_maps(model).items():
        model.set_submodule(name, Unmerged(linear, rank, dropout))
    return model


def with_peft(model: Any, rank: int) -> nn.Module:
    """The model with PEFT's LoRA on each projection; all but the projections' weights are trained, as here."""
    from peft import LoraConfig, get_peft_model

    targets = list(lowrank.linear_maps(model))
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(".base_layer." not in name)
    return adapted


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a side trains, by the name it has here."""
    return {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
