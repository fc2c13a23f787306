"""From settings to a finished run folder, through shared stages, from wherever it was left.

A run that starts, one that begins where a stage ended and one that is resumed differ only in the checkpoint
they find in their folder. The loop is in trainer.py. Of several processes one leads: it decides what is trained next,
and the others do the same, without a folder.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from relora_lab import data, environment, examples, outcome, pretrained, process, processes, stages, tasks
from relora_lab.config import as_table, digest, parse
from relora_lab.data import Corpus
from relora_lab.errors import BadInput, FolderHeld, printable
from relora_lab.examples import Examples
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.trainer import Trainer
from relora_lab.workspace import longest_stage, stage_folder, token_cache


def run(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    cuts: Sequence[int] | None = None,
    progress: bool = False,
) -> Path:
    """Train a run into the folder `out` and return it. With `resume`, go on from its newest checkpoint.

    What the run does at full rank up to its warm start and reference step is trained as stages beside the run
    folder and shared with other runs. `cuts` are the steps where these stages end: a grid has more of them, and with
    cuts=() the run trains all of it alone, to the same bits. A diverged run is a result: see status.json. Raises
    BadInput before anything is written, FolderHeld if another process has the folder, Interrupted after a signal
    (state saved). Several processes that have `joined` all call this.
    """
    folder = RunFolder(out)
    with processes.together():
        environment.check(config)
        processes.check_batch(config.data.batch_size)
        if processes.leads():
            folder.check(resume=resume)
            folder.require_same(config)
    runs = folder.path.absolute().parent
    with processes.together():
        corpus = tokens(config, runs)
        pretrained.check(config, corpus.vocab_size)
    processes.take_device(config.training.device)
    processes.require_same({"settings": digest(config), "text": corpus.text_sha256, **environment.made_with(config)})
    if not processes.leads():
        _follow(folder, corpus)
        return folder.path
    if progress and isinstance(corpus, Examples) and (note := corpus.note(config.data.sequence_length)):
        print(f"note: {note}", file=sys.stderr)
    folder.make()
    with folder.lock(), process.threads(config.training.threads):
        folder.require_same(config)
        _require_same_data(config, folder, corpus)
        if not folder.ended:
            cuts = stages.cuts(config) if cuts is None else cuts
            _train(config, folder, corpus, runs, cuts, until=config.training.steps, progress=progress)
    processes.tell(None)
    return folder.path


def _follow(folder: RunFolder, corpus: Corpus | Examples) -> None:
    """Train what the leader trains, stages and run, until there is no more."""
    while (told := processes.hear()) is not None:
        config = parse(told["config"])
        with process.threads(config.training.threads):
            Trainer(config, folder, corpus, told["until"], progress=False).train()


def tokens(config: RunConfig, runs: Path) -> Corpus | Examples:
    """What a run below `runs` reads as tokens, made on first use and shared with the others there."""
    read = config.data
    if read.tokenizer == "model":
        read = replace(read, tokenizer=pretrained.tokenizer_of(config.model))
    if config.task is None:
        return data.open_corpus(read, token_cache(runs), sequence_length=read.sequence_length)
    task = tasks.resolve(config.task.name)
    return examples.open_examples(task, read, token_cache(runs), text_to_text=config.model.is_t5)


def stage(config: RunConfig, runs: Path, cuts: Sequence[int], tell: Callable[[Path], None]) -> None:
    """Train the stage of `config` up to the last of `cuts`, for the runs below `runs`, unless it is there.

    `tell` is called with its folder before. Raises FolderHeld if another process is at it.
    """
    environment.check(config)
    corpus = tokens(config, runs)
    folder, _ = _place(stages.stage_config(config, cuts[-1]), cuts[-1], corpus, runs)
    tell(folder.path)
    with process.threads(config.training.threads):
        _stage(config, corpus, runs, cuts, progress=False, wait=False)


def _place(config: RunConfig, cut: int, corpus: Corpus | Examples, runs: Path) -> tuple[RunFolder, str]:
    """The folder of a stage with these settings, and its digest."""
    digest = stages.digest(config, cut, corpus.text_sha256, environment.made_with(config))
    return stage_folder(runs, digest, cut), digest


def _train(
    config: RunConfig,
    folder: RunFolder,
    corpus: Corpus | Examples,
    runs: Path,
    cuts: Sequence[int],
    *,
    until: int,
    progress: bool,
    shorter: RunFolder | None = None,
) -> None:
    """Train what is left of a run, or of a stage, in its folder.

    A new one begins where `shorter` ended, or else where the stage up to the last of `cuts` ends.
    """
    folder.sweep()
    folder.require_undamaged("warm_start/", "snapshots/", "cycles/")
    folder.write_config(config)
    folder.write_environment(environment.facts(config, corpus, folder.environment))
    folder.write_status("waiting", step=0, steps=until)
    with outcome.noted(folder):
        if (shorter or cuts) and not folder.has_checkpoint:
            folder.adopt(shorter or _stage(config, corpus, runs, cuts, progress))
        processes.tell({"config": as_table(config), "until": until})
        Trainer(config, folder, corpus, until, progress).train()


def _stage(
    config: RunConfig, corpus: Corpus | Examples, runs: Path, cuts: Sequence[int], progress: bool, wait: bool = True
) -> RunFolder:
    """The finished stage up to the last of `cuts`, trained here unless another process is at it: then wait."""
    *earlier, cut = cuts
    config = stages.stage_config(config, cut)
    folder, digest = _place(config, cut, corpus, runs)
    folder.make()
    told = not progress
    while not folder.ended:
        try:
            with folder.lock():
                if not folder.ended:
                    shorter = longest_stage(runs, digest, below=cut)
                    _train(config, folder, corpus, runs, earlier, until=cut, progress=progress, shorter=shorter)
        except FolderHeld as held:
            if not wait:
                raise
            if not told:
                print(printable(f"waiting for steps 0–{cut}, which another run trains too ({held})"), file=sys.stderr)
            told = True
            time.sleep(0.2)
    return folder


def _require_same_data(config: RunConfig, folder: RunFolder, corpus: Corpus | Examples) -> None:
    weights = environment.made_with(config).get("weights_sha256")
    if folder.begun and folder.environment.get("weights_sha256") != weights:
        raise BadInput(f"{folder.path}: cannot resume with other model.weights ({config.model.weights} has changed)")
    old = folder.environment.get("corpus", {}).get("text_sha256")
    if old and old != corpus.text_sha256:
        changed = f"from {old[:8]} to {corpus.text_sha256[:8]}"
        raise BadInput(f"{folder.path}: cannot resume with another corpus (sha256 changed {changed})")
