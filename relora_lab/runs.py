"""The run folder: with logs.py, checkpoints.py and cycle_files.py all that knows its file names (see the README).

Everything a run leaves behind is written here, whole or not at all, and read here. A stage (what several runs
share, below .stages/) is a run folder too: that of a run that stops early.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from relora_lab import checkpoints, config, cycle_files, files, tasks, tensor_files
from relora_lab import manifest as manifests
from relora_lab.cycle_files import Pair
from relora_lab.errors import BadInput, require
from relora_lab.logs import Logs
from relora_lab.settings import RunConfig, check_name

if TYPE_CHECKING:  # who looks at the state of runs does not wait for torch
    from torch import Tensor


MAY_CHANGE = ("training.threads", "training.device", "training.checkpoint_every")


def snapshot(step: int) -> str:
    """The name, as `which`, of the merged weights kept at a step on the way."""
    return f"snapshots/{step:09d}"


class RunFolder:
    """One run on disk. Reading works on any folder; writing expects that `lock` is held."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.logs = Logs(self.path)

    # ---- making and finding

    def check(self, *, resume: bool) -> None:
        """Raise BadInput unless a run can be written here; leaves nothing."""
        check_name("--out", self.path.name)
        try:
            for place in (self.path, self.path.absolute().parent):  # tokens and stages lie beside the run
                found = next(folder for folder in [place, *place.absolute().parents] if folder.exists())
                with tempfile.TemporaryDirectory(dir=found, prefix="."):
                    pass
        except OSError as error:
            raise BadInput(f"--out {self.path}: cannot be written ({error.strerror})") from None
        if not self.path.exists() or all(path.name.startswith(".") for path in self.path.iterdir()):
            return  # new, or killed before its settings were written
        require(self.started, f"--out {self.path}: exists and is no run folder")
        fix = "name another folder" if self.ended else "continue it with --resume"
        require(resume, f"--out {self.path}: holds a run ({self.state}); {fix}")

    @property
    def held(self) -> bool:
        """Does a process hold the folder?"""
        return files.is_locked(self.path / ".lock")

    def require_same(self, settings: RunConfig) -> None:
        """Raise BadInput, with old and new, if the run begun here has other settings; the machine may differ."""
        if self.begun:
            for field, (old, new) in config.differences(self.config, settings).items():
                if field not in MAY_CHANGE:
                    changed = f"{field} changed from {old} to {new}"
                    fix = "use another folder, or remove this one to train it anew"
                    raise BadInput(f"{self.path}: cannot resume with {changed}; {fix}")

    def make(self) -> None:
        """Create the folder. Raises BadInput where that fails."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--out {self.path}: cannot be written ({error.strerror})") from None

    def sweep(self) -> None:
        """Remove what a killed process left half written; the folder must be held."""
        for path in self.leftovers():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        checkpoints.forget_older(self.checkpoints)

    def leftovers(self) -> list[Path]:
        """What a killed process left half written."""
        return list(self.path.rglob(".*-*"))

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder. Raises FolderHeld if another process does."""
        return files.locked(self.path / ".lock")

    # ---- settings, environment, status

    @property
    def started(self) -> bool:
        """Is there a run?"""
        return (self.path / "config.toml").exists()

    @property
    def begun(self) -> bool:
        """Is there something of these settings to go on from? What failed before can be tried with others."""
        if not (self.path / "environment.json").exists():
            return False
        return self.has_checkpoint or self.state != "failed"

    @property
    def ended(self) -> bool:
        """Is there nothing left to do? Divergence is an end."""
        return self.state in ("finished", "diverged")

    @property
    def config(self) -> RunConfig:
        """The run's resolved settings. Raises BadInput if a newer version wrote them."""
        return config.load(self.path / "config.toml")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device, corpus: what the run was made with."""
        return files.read_json(self.path / "environment.json")

    @property
    def status(self) -> dict[str, Any]:
        """state, step, heartbeat; reason where there is one."""
        return files.read_json(self.path / "status.json")

    @property
    def state(self) -> str:
        """waiting, running, finished, diverged, failed or stopped."""
        return str(self.status.get("state", "waiting"))

    def write_config(self, settings: RunConfig) -> None:
        """Store the resolved settings."""
        files.write_text(self.path / "config.toml", config.dumps(settings))

    def write_environment(self, facts: Mapping[str, Any]) -> None:
        """Store the environment."""
        files.write_json(self.path / "environment.json", dict(facts))

    def write_status(self, state: str, **facts: Any) -> None:
        """Store the status, with the time as heartbeat and who wrote it."""
        who = {"process": os.getpid(), "host": socket.gethostname()}
        files.write_json(self.path / "status.json", {"state": state, **facts, "heartbeat": time.time(), **who})

    # ---- results

    @property
    def final_evaluation(self) -> dict[str, Any] | None:
        """The last line of eval: step, loss (nats); perplexity, tokens, or of a task score, examples, its metrics."""
        lines = self.logs.read("eval")
        return lines[-1] if lines else None

    @property
    def measure(self) -> str:
        """What tells how good the run is: "perplexity", or the first metric of its task."""
        task = self.config.task
        return tasks.resolve(task.name).metrics[0] if task else "perplexity"

    def summary(self) -> str:
        """How the run ended, in a line."""
        status, final = self.status, self.final_evaluation
        reason = f" ({status['reason']})" if "reason" in status else ""
        value = final.get(self.measure) if final else None
        told = "undefined" if value is None else f"{value:.5g}"
        reached = f", {self.measure} {told} (loss {final['loss']:.5g})" if final else ""
        return f"{self.path}: {self.state}{reason} at step {status.get('step', 0)}{reached}"

    # ---- checkpoints

    @property
    def checkpoints(self) -> Path:
        """The folder of the newest complete state."""
        return self.path / "checkpoints"

    def save_checkpoint(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: dict[str, Any]) -> None:
        """Make this the newest complete state, with the logs as they are."""
        checkpoints.save(self.checkpoints, step, tensors, {**facts, "logs": self.logs.sync()})

    def load_checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """The newest complete state, logs cut back to it; None (and no logs) where there is none yet."""
        if not self.has_checkpoint:
            self.logs.cut({})
            return None
        tensors, facts = checkpoints.load(checkpoints.states(self.checkpoints)[-1])
        self.logs.cut(facts["logs"])
        return tensors, facts

    @property
    def has_checkpoint(self) -> bool:
        """Is there a state to go on from?"""
        return bool(checkpoints.states(self.checkpoints))

    @property
    def checkpoint_step(self) -> int:
        """The step of that state; 0 without one."""
        return max(map(checkpoints.step_of, checkpoints.states(self.checkpoints)), default=0)

    def adopt(self, stage: RunFolder) -> None:
        """Begin where `stage` ended: its logs, its merged weights if the references agree, its checkpoint."""
        self.logs.cut({})
        for log in stage.path.glob("*.jsonl"):
            files.copy(log, self.path / log.name)
        reference = stage.config.training.reference
        if reference == self.config.training.reference and (stage.path / "warm_start").exists():
            self._link_folder(stage.path / "warm_start", self.path / "warm_start")
            manifests.record(self.path, "warm_start")
        newest = checkpoints.states(stage.checkpoints)[-1]
        self.checkpoints.mkdir(exist_ok=True)
        self._link_folder(newest, self.checkpoints / newest.name)

    def _link_folder(self, source: Path, target: Path) -> None:
        with files.new_folder(target) as making:
            for path in source.iterdir():
                files.link(path, making / path.name)

    # ---- weights

    def write_weights(self, which: str, model_config: str, tensors: Mapping[str, Tensor], tokenizer: Path) -> None:
        """Store merged weights, with the tokenizer's files, as a Hugging Face checkpoint: `which` is "warm_start",
        "final" or a snapshot(step)."""
        (self.path / which).parent.mkdir(exist_ok=True)
        with files.new_folder(self.path / which) as making:
            for path in tokenizer.iterdir():
                files.copy(path, making / path.name)  # no link: saving over it would change other runs' too
            files.write_text(making / "config.json", model_config)
            tensor_files.write(making / "model.safetensors", tensors)
        manifests.record(self.path, which)

    def weight(self, which: str, name: str) -> Tensor:
        """One tensor of merged weights; the file is opened for it alone, so memory holds one matrix."""
        with safe_open(self.path / which / "model.safetensors", "pt") as file:
            return file.get_tensor(name)

    def weights(self, which: str) -> Path:
        """The folder of merged weights. Raises BadInput where the run has not come that far."""
        status = self.status
        at = f"{self.state} at step {status.get('step', 0)} of {status.get('steps', '?')}"
        far = f"the run has {at}, but has" if self.ended else f"run not finished ({at}): it has"
        go_on = "" if self.ended else "; continue it with relora-lab train --resume"
        require((self.path / which).is_dir(), f"{self.path}: {far} no {which}/{go_on}")
        return self.path / which

    @property
    def snapshots(self) -> dict[int, Path]:
        """The folders of the merged weights kept on the way, by step, in order."""
        return {int(path.name): path for path in sorted(self.path.glob("snapshots/[0-9]*"))}

    @property
    def has_weights(self) -> bool:
        """Are both ends of ΔW there?"""
        return all((self.path / which).is_dir() for which in ("warm_start", "final"))

    # ---- cycles

    def write_cycle(self, cycle: int, pairs: Mapping[str, list[Pair]], facts: Mapping[str, Any]) -> None:
        """Store a cycle's change of each merged matrix as signed factor pairs, and what happened at its end."""
        cycle_files.write(self._cycles, cycle, pairs, facts)
        manifests.record(self.path, *(f"cycles/{path.name}" for path in cycle_files.paths(self._cycles, cycle)))

    def cycle_facts(self, *, since: int = -1) -> list[dict[str, Any]]:
        """What happened at the end of each cycle that ends after step `since`; "scales" has a key a factor pair."""
        return [facts for facts in cycle_files.facts(self._cycles) if facts.get("end", 0) > since]

    def cycles(self, *, since: int = -1) -> Iterator[tuple[dict[str, list[Pair]], dict[str, Any]]]:
        """(pairs by matrix, facts) of the cycles that end after step `since`, in order.

        With the reference step as `since`, the sum of scale·B·A is ΔW where the facts say `factored`.
        """
        for facts in self.cycle_facts(since=since):
            pairs = {matrix: list(self.pairs(matrix, [facts])) for matrix in self.factored_matrices([facts])}
            yield pairs, {name: fact for name, fact in facts.items() if name != "scales"}

    factored_matrices = staticmethod(cycle_files.matrices)

    def pairs(self, matrix: str, cycles: list[dict[str, Any]]) -> Iterator[Pair]:
        """Signed factor pairs of one matrix over `cycles` (from cycle_facts), one at a time from the files."""
        return cycle_files.pairs(self._cycles, matrix, cycles)

    @property
    def all_cycle_files(self) -> list[Path]:
        """Those of all cycles, in order."""
        return sorted(self._cycles.glob("*"))

    def cycle_files(self, facts: Mapping[str, Any]) -> tuple[Path, Path]:
        """Where the factor pairs of a cycle (from cycle_facts) are, and its facts."""
        return cycle_files.paths(self._cycles, facts["cycle"])

    @property
    def _cycles(self) -> Path:
        return self.path / "cycles"

    # ---- manifest

    @property
    def manifest(self) -> dict[str, str]:
        """sha256 of every finished file, by its path in the folder."""
        return manifests.read(self.path)

    def require_undamaged(self, *below: str, sha256: Callable[[Path], str] = files.sha256) -> None:
        """Raise BadInput, naming it, for a finished file below these folders that is not as it was written."""
        manifests.require_undamaged(self.path, below, sha256)

    def finish(self) -> None:
        """Close the logs and note them, settings and environment in the manifest."""
        self.logs.sync()
        self.logs.close()
        noted = "config.toml", "environment.json", *(log.name for log in self.path.glob("*.jsonl"))
        manifests.record(self.path, *noted)
