"""Checkpoints for tests: Hugging Face folders of random tensors."""

import json

import torch
from safetensors.torch import save_file

from analysis.matching import match_models
from analysis.naming import Selection


def model(folder, shapes, *, seed=0, config=None, **replaced):
    """A Hugging Face folder of random tensors of these shapes; the seed changes what is in them."""
    folder.mkdir()
    random = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    save_file(tensors | replaced.pop("tensors", {}), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def pair(tmp_path, shapes, selection=None, **options):
    """What two models of these shapes share."""
    ends = [model(tmp_path / name, shapes, seed=seed, **options) for seed, name in enumerate(("start", "final"))]
    return match_models(*ends, selection or Selection())


def block(*parts, shape=(8, 8)):
    """Shapes of these modules' weights."""
    return dict.fromkeys((f"{part}.weight" for part in parts), shape)
