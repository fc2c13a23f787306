"""The loop: updates, restarts, records and checkpoints of one run folder."""

import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from tqdm import tqdm

from relora_lab import models, objective, process, processes, records
from relora_lab import state as states
from relora_lab.data import Corpus
from relora_lab.divergence import Monitor
from relora_lab.errors import Interrupted, NoSpace
from relora_lab.examples import Examples
from relora_lab.faults import point
from relora_lab.lowrank import merged_state_dict
from relora_lab.methods._options import LowRankOptions
from relora_lab.processes import by_the_leader
from relora_lab.restart import restart
from relora_lab.runs import RunFolder, snapshot
from relora_lab.settings import RunConfig
from relora_lab.update import update

HEARTBEAT_SECONDS = 2.0


class Trainer:
    """A run folder being trained to step `until`: the end of the run, or of a stage.

    Several processes go through all of this together, each with a Trainer; only the leader's touches the folder.
    """

    def __init__(
        self, config: RunConfig, folder: RunFolder, read: Corpus | Examples, until: int, progress: bool
    ) -> None:
        self.config, self.folder, self.until, self.progress = config, folder, until, progress
        self._log, self._save = by_the_leader(folder.logs.append), by_the_leader(folder.save_checkpoint)
        self.method = config.low_rank
        self.is_stage = until < config.training.steps
        self.tokenizer_folder = read.tokenizer_folder
        self.objective = objective.of(config, read)
        self.state = states.initial(config, read.vocab_size)
        models.name_tokens(self.state.model, eos=read.eos_token_id, pad=read.pad_token_id)
        tensors, facts = processes.state_from_leader(self._left_off)
        if "step" in facts:
            states.restore(self.state, tensors, facts)
        self.state.model.train()
        self._lr = 0.0  # of the last update
        self._pace: float | None = None  # seconds an update, with all that comes between
        self.monitor = Monitor(config.divergence, self.objective.chance, *self._restarts())
        self._tokens = 0
        for step, loss, self._lr, tokens in tensors["logs"]["updates"].tolist():
            self.monitor.update(int(step), loss)
            self._tokens = int(tokens)
        self._evaluated = facts["evaluated"]

    def train(self) -> None:
        """From where the state is to `until`, or to divergence."""
        with process.signals() as self._received, self._bar() as bar:
            try:
                self._loop(bar)
            except BaseException:
                with suppress(NoSpace):
                    self._note("running")  # at which step it stopped
                raise
        self._close()

    # ---- the loop

    def _loop(self, bar: Any) -> None:
        noted, begun = 0.0, time.monotonic()
        first = self.state.step
        while True:
            self._arrive()
            if self.state.step == self.until or self.state.diverged:
                return
            signum = processes.largest(self._received[0] if self._received else 0)  # one that gets a signal stops all
            if signum:
                self._checkpoint()
                raise Interrupted(signum, f"at step {self.state.step}; continue with --resume")
            point(f"update {self.state.step + 1}")
            line = self._update()
            if line is not None:
                self._after_update()
                speed = line["tokens_per_second"]
                bar.set_postfix_str(f"loss {line['loss']:.3f}, {speed:,} tokens/s", refresh=False)
                bar.update()
                now = time.monotonic()
                self._pace = (now - begun) / (self.state.step - first)
                if now - noted > HEARTBEAT_SECONDS:
                    noted = now
                    self._note("running", loss=line["loss"], tokens_per_second=speed)
            if self.state.diverged:
                self._checkpoint()

    def _arrive(self) -> None:
        """What the step begins: ΔW, the low-rank phase. Done again by a run that resumes at this very step.

        ΔW counts from the weights before they are wrapped, unless those are thrown away.
        """
        state, training = self.state, self.config.training
        from_zero = self.method is not None and self.method.base == "zero"
        if from_zero:
            self._begin_low_rank()
        already = state.layers and state.step == training.warm_start and not from_zero
        if state.step == training.reference and not already:
            self._write_weights("warm_start")
            state.begin_cycle()
            if not (self.is_stage and state.step == self.until):  # who begins there will
                self._evaluate()
        self._begin_low_rank()
        self._evaluate_if_due()  # from which a signal may have kept it when it came by

    def _begin_low_rank(self) -> None:
        """Wrap the model, if its time has come and it is not wrapped yet."""
        state, method = self.state, self.method
        if method is None or state.layers or state.step < self.config.training.warm_start:
            return
        if method.base == "zero":  # what was there before counts for nothing
            states.begin_low_rank(state, method)
            self._evaluate()
            return
        self._evaluate()
        before = self.objective.probe(state.model)
        states.begin_low_rank(state, method)
        state.wrapping = {
            "wrap_jump": self.objective.probe(state.model) - before,
            "wrap_quantisation_error": records.quantisation_error(state),
        }

    def _update(self) -> dict[str, Any] | None:
        """One update, as a line of metrics. None if loss or gradient are not finite: it is then not applied."""
        state, started = self.state, time.perf_counter()
        found = update(state, self.objective)
        if not found.applied:
            name = "grad_norm" if math.isfinite(found.loss) else "loss"
            state.diverged = f"{name} of update {state.step + 1} is {getattr(found, name)}"
            return None
        self._lr = found.lr
        self._tokens += found.tokens
        line = {
            "step": state.step,
            "loss": found.loss,
            "lr": found.lr,
            "grad_norm": found.grad_norm,
            "tokens": self._tokens,
            "tokens_per_second": round(found.tokens / (time.perf_counter() - started)),
        }
        self._log("metrics", line)
        state.diverged = self.monitor.update(state.step, found.loss)
        return line

    def _after_update(self) -> None:
        """What the step ends: a cycle. And norms, evaluation, snapshot and checkpoint where they are due."""
        step, training = self.state.step, self.config.training
        updates = step - training.warm_start
        method = self.method if 0 < updates < self.config.low_rank_steps else None
        if method and (method.merges_after(updates) or method.restarts_after(updates)):
            self._restart(method, updates)
        elif step % training.norms_every == 0:
            self._trace("trace")
        self._evaluate_if_due()
        # As the next cycle begins: after a merge, and where the function jumps at it (qr_mode = "paper"), after that.
        # Before the checkpoint: a run resumed from there does not come by again. A diverged run's last is final/.
        if step in training.snapshot_steps and not self.state.diverged:
            self._write_weights(snapshot(step))
        if step % training.checkpoint_every == 0 or step == self.until:
            self._checkpoint()

    def _restart(self, method: LowRankOptions, updates: int) -> None:
        """End a cycle and begin the next, `updates` into the low-rank phase, and write down what that did."""
        state, full_restart = self.state, method.restarts_after(updates)
        sBA = self._trace("before")
        pairs, loss_before = records.cycle_pairs(state), self.objective.probe(state.model)
        if not math.isfinite(loss_before):
            reason = f"the held-out loss before the restart at step {state.step} is {loss_before}"
            state.diverged = state.diverged or reason
            return
        report = restart(
            state.layers,
            state.optimizer,
            cycle=state.cycle + 1,
            seed=self.config.training.seed,
            merge=method.merges_after(updates),
            reset=method.optimizer_reset if full_restart else "none",
            ratio=method.reset_ratio,
            mask=method.reset_mask,
            reset_params=method.reset_params,
        )
        loss_after = self.objective.probe(state.model)
        self._write_cycle(
            method,
            pairs,
            event="restart" if full_restart else "merge",
            merged=method.merges_after(updates),
            **vars(report),
            loss_before=loss_before,
            loss_after=loss_after,
            function_jump=loss_after - loss_before,
            sBA=sBA,
            quantisation_error=records.quantisation_error(state),
        )
        state.cycle += 1
        state.begin_cycle(factors_count=not method.keeps_function)
        self._trace("after")

    def _close(self) -> None:
        """The last cycle, the last evaluation and the final weights."""
        if not self.is_stage:
            if self.method and self.state.layers:
                self._write_cycle(self.method, records.cycle_pairs(self.state), merged=False)
            self._evaluate()
            self._write_weights("final")
        self._finish()

    # ---- what it writes

    @by_the_leader
    def _finish(self) -> None:
        """How it ended, and the check that a run's cycles sum up to its final weights."""
        state, folder, reference = self.state, self.folder, self.config.training.reference
        facts: dict[str, Any] = {"reason": state.diverged} if state.diverged else {}
        summed = state.layers and records.factored(self.config) and reference <= state.step
        if summed and not self.is_stage:
            facts["identity_deviation"] = records.check_identity(folder, reference)
        folder.finish()
        facts[self.objective.headline] = (folder.final_evaluation or {}).get(self.objective.headline)
        self._note("diverged" if state.diverged else "finished", **facts)

    @by_the_leader
    def _trace(self, moment: str) -> float:
        """Log the norms of all matrices; the norm of all s·B·A together."""
        rows = list(records.norms(self.state, self.folder, moment))
        for row in rows:
            self._log("norms", row)
        return math.hypot(*(row["sBA"] or 0.0 for row in rows))

    def _evaluate_if_due(self) -> None:
        """The evaluation of this step. One that a signal ends is made by the run that goes on from here."""
        step = self.state.step
        if step and step % self.config.training.eval_every == 0:
            alone = processes.count() == 1  # else who gets no signal would wait for the sums of one that does
            with suppress(Interrupted):
                self._evaluate(self._received if alone else ())

    def _evaluate(self, signals: Sequence[int] = ()) -> None:
        state = self.state
        if self._evaluated != state.step:
            found = self.objective.evaluate(state.model, signals)
            self._log("eval", {"step": state.step, **found.line})
            self._evaluated = state.step
            if not math.isfinite(found.loss):
                state.diverged = state.diverged or f"the held-out loss at step {state.step} is {found.loss}"

    def _checkpoint(self) -> None:
        processes.require_same_weights(self.state.model.state_dict())
        self._save(self.state.step, *states.capture(self.state))

    @by_the_leader
    def _write_weights(self, which: str) -> None:
        model: Any = self.state.model
        tensors, text = merged_state_dict(model), model.config.to_json_string()
        self.folder.write_weights(which, text, tensors, self.tokenizer_folder)

    @by_the_leader
    def _write_cycle(self, method: LowRankOptions, pairs: records.Pairs, **facts: Any) -> None:
        """The newest cycle, ended here: its factor pairs and, beside `facts`, whether they sum up to its change."""
        state = self.state
        about: dict[str, Any] = {
            "cycle": state.cycle + 1,
            "start": state.cycle_start,
            "end": state.step,
            "lr": self._lr,
            "factored": records.factored(self.config),
            "adds_rank": records.adds_rank(state, method, pairs),
        }
        if state.cycle == 0:
            about |= state.wrapping
        self.folder.write_cycle(state.cycle + 1, pairs, about | facts)

    @by_the_leader
    def _note(self, state: str, **facts: Any) -> None:
        pace = {"seconds_per_update": self._pace} if self._pace else {}
        self.folder.write_status(state, step=self.state.step, steps=self.until, **pace, **facts)

    # ---- what it needs to know

    def _left_off(self) -> processes.State:
        """The folder's newest state, if it has one, and what its logs say of updates and of the last evaluation."""
        tensors, facts = self.folder.load_checkpoint() or ({}, {})
        lines = self.folder.logs.read("metrics")
        updates = [[line["step"], line["loss"], line["lr"], line["tokens"]] for line in lines]
        evaluated = [line["step"] for line in self.folder.logs.read("eval")]
        logs = {"updates": torch.tensor(updates, dtype=torch.float64)}
        return {**tensors, "logs": logs}, {**facts, "evaluated": evaluated[-1] if evaluated else None}

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
