"""The loop: updates, restarts, records and checkpoints of one run folder."""

import math
import sys
import time
from typing import Any

import torch
from tqdm import tqdm

from relora_lab import process, records
from relora_lab import state as states
from relora_lab.data import Corpus
from relora_lab.divergence import Monitor
from relora_lab.errors import Interrupted
from relora_lab.lowrank import merged_state_dict
from relora_lab.methods._options import LowRankOptions
from relora_lab.objective import LanguageModelling
from relora_lab.restart import restart
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig

HEARTBEAT_SECONDS = 2.0


class Trainer:
    """A run folder being trained to step `until`: the end of the run, or of a stage."""

    def __init__(self, config: RunConfig, folder: RunFolder, corpus: Corpus, until: int, progress: bool) -> None:
        self.config, self.folder, self.until, self.progress = config, folder, until, progress
        self.method = config.low_rank
        self.is_stage = until < config.training.steps
        self.tokenizer_folder = corpus.tokenizer_folder
        self.objective = LanguageModelling(config, corpus)
        self.state = states.initial(config, self.objective.classes)
        hf_config: Any = self.state.model.config
        hf_config.eos_token_id = corpus.eos_token_id  # written beside the weights
        checkpoint = folder.load_checkpoint()
        if checkpoint is not None:
            states.restore(self.state, *checkpoint)
        self.state.model.train()
        self._lr = 0.0  # of the last update
        self.monitor = Monitor(config.divergence, self.objective.classes, *self._restarts())
        for line in folder.logs.read("metrics"):
            self.monitor.update(line["step"], line["loss"])
            self._lr = line["lr"]
        evaluated = folder.logs.read("eval")
        self._evaluated = evaluated[-1]["step"] if evaluated else None

    def train(self) -> None:
        """From where the state is to `until`, or to divergence."""
        with process.signals() as received, self._bar() as bar:
            try:
                self._loop(received, bar)
            except BaseException:
                self._note("running")  # at which step it stopped
                raise
        self._close()

    # ---- the loop

    def _loop(self, received: list[int], bar: Any) -> None:
        noted = 0.0
        while True:
            self._arrive()
            if self.state.step == self.until or self.state.diverged:
                return
            if received:
                self._checkpoint()
                raise Interrupted(received[0], f"at step {self.state.step}; continue with --resume")
            line = self._update()
            if line is not None:
                self._after_update()
                speed = line["tokens_per_second"]
                bar.set_postfix_str(f"loss {line['loss']:.3f}, {speed:,} tokens/s", refresh=False)
                bar.update()
                if time.monotonic() - noted > HEARTBEAT_SECONDS:
                    noted = time.monotonic()
                    self._note("running", loss=line["loss"], tokens_per_second=speed)
            if self.state.diverged:
                self._checkpoint()

    def _arrive(self) -> None:
        """What the step begins: the low-rank phase, ΔW. Done again by a run that resumes at this very step."""
        state, training = self.state, self.config.training
        if self.method and not state.layers and state.step >= training.warm_start:
            states.begin_low_rank(state, self.method)
            self._evaluate()
        if state.step == training.reference:
            self._write_weights("warm_start")
            state.begin_cycle()
            if not (self.is_stage and state.step == self.until):  # who begins there will
                self._evaluate()

    def _update(self) -> dict[str, Any] | None:
        """One update, as a line of metrics. None if loss or gradient are not finite: it is then not applied."""
        state, started = self.state, time.perf_counter()
        self._lr = state.lr
        for group in state.optimizer.param_groups:
            group["lr"] = self._lr
        batch = self.objective.batch(state.step).to(self.config.training.device)
        parts = batch.chunk(self.config.training.micro_batches)
        loss = torch.zeros((), device=batch.device)
        for part in parts:
            part_loss = self.objective.loss(state.model, part) / len(parts)
            part_loss.backward()
            loss += part_loss.detach()
        trained = [p for group in state.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.config.optimizer.clip)
        line = {"step": state.step + 1, "loss": float(loss), "lr": self._lr, "grad_norm": float(norm)}
        not_finite = [name for name in ("loss", "grad_norm") if not math.isfinite(line[name])]
        if not_finite:
            state.diverged = f"{not_finite[0]} of update {line['step']} is {line[not_finite[0]]}"
        else:
            state.optimizer.step()
            state.step += 1
        state.optimizer.zero_grad()
        if state.diverged:
            return None
        line["tokens"] = state.step * batch.numel()
        line["tokens_per_second"] = round(batch.numel() / (time.perf_counter() - started))
        self.folder.logs.append("metrics", line)
        state.diverged = self.monitor.update(state.step, line["loss"])
        return line

    def _after_update(self) -> None:
        """What the step ends: a cycle. And norms, evaluation and checkpoint where they are due."""
        step, training = self.state.step, self.config.training
        if self.method and step in self.monitor.restarts:
            self._restart(self.method)
        elif step % training.norms_every == 0:
            self._trace("trace")
        if step % training.eval_every == 0:
            self._evaluate()
        if step % training.checkpoint_every == 0 or step == self.until:
            self._checkpoint()

    def _restart(self, method: LowRankOptions) -> None:
        """End a cycle and begin the next, and write down what that did."""
        state = self.state
        self._trace("before")
        pairs, loss_before = records.cycle_pairs(state), self.objective.probe(state.model)
        report = restart(
            state.layers,
            state.optimizer,
            cycle=state.cycle + 1,
            seed=self.config.training.seed,
            merge=method.merges,
            reset=method.optimizer_reset,
            ratio=method.reset_ratio,
            mask=method.reset_mask,
            reset_params=method.reset_params,
        )
        loss_after = self.objective.probe(state.model)
        jump = {
            "loss_before": loss_before,
            "loss_after": loss_after,
            "function_jump": loss_after - loss_before,
        }
        self._write_cycle(pairs, merged=method.merges, **vars(report), **jump)
        state.cycle += 1
        state.begin_cycle()
        self._trace("after")

    def _close(self) -> None:
        """The last cycle, the last evaluation, the final weights, and the check that the cycles sum up to them."""
        state, folder, training = self.state, self.folder, self.config.training
        facts: dict[str, Any] = {"reason": state.diverged} if state.diverged else {}
        if not self.is_stage:
            if state.layers:
                self._write_cycle(records.cycle_pairs(state), merged=False)
            self._evaluate()
            self._write_weights("final")
            if state.layers and training.warm_start <= training.reference <= state.step:
                facts["identity_deviation"] = records.check_identity(folder, training.reference)
        folder.finish()
        self._note("diverged" if state.diverged else "finished", **facts)

    # ---- what it writes

    def _trace(self, moment: str) -> None:
        for row in records.norms(self.state, self.folder, moment):
            self.folder.logs.append("norms", row)

    def _evaluate(self) -> None:
        state = self.state
        if self._evaluated != state.step:
            found = self.objective.evaluate(state.model)
            line = {
                "step": state.step,
                "loss": found.loss,
                "perplexity": found.perplexity,
                "tokens": found.tokens,
            }
            self.folder.logs.append("eval", line)
            self._evaluated = state.step

    def _checkpoint(self) -> None:
        self.folder.save_checkpoint(self.state.step, *states.capture(self.state))

    def _write_weights(self, which: str) -> None:
        model: Any = self.state.model
        tensors, text = merged_state_dict(model), model.config.to_json_string()
        self.folder.write_weights(which, text, tensors, self.tokenizer_folder)

    def _write_cycle(self, pairs: records.Pairs, **facts: Any) -> None:
        state = self.state
        span = {"cycle": state.cycle + 1, "start": state.cycle_start, "end": state.step, "lr": self._lr}
        # Full-rank steps after the reference are in ΔW and in no cycle.
        factored = self.config.training.reference >= self.config.training.warm_start
        self.folder.write_cycle(state.cycle + 1, pairs, {**span, "factored": factored, **facts})

    def _note(self, state: str, **facts: Any) -> None:
        self.folder.write_status(state, step=self.state.step, steps=self.until, **facts)

    # ---- what it needs to know

    def _restarts(self) -> tuple[range, int]:
        """Steps after which the toggles act, and the restart warm-up."""
        if self.method is None or self.method.restart_every is None:
            return range(0), 0
        first, every = self.config.training.warm_start, self.method.restart_every
        return range(first + every, self.config.training.steps, every), self.method.restart_warmup

    def _bar(self) -> Any:
        name = f"stage 0–{self.until}" if self.is_stage else self.folder.path.name
        return tqdm(
            desc=name,
            total=self.until,
            initial=self.state.step,
            unit="step",
            disable=not self.progress,
            mininterval=0.2 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
        )
