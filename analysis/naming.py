"""What a matrix's name tells: its module, layer and role; and which names are chosen."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from relora_lab.errors import require

MATRIX = ["matrix", "layer", "role", "rows", "cols"]  # columns that tell matrices apart
ROLES = ["q", "k", "v", "o", "gate", "up", "down"]
ORDER = {role: number for number, role in enumerate(ROLES)} | {"query": 0, "key": 1, "value": 2}
BLOCK = re.compile(r"(?:^|[._])([0-9]{1,9})(?=\.)")  # layers.3., encoder_layer_3.
NO_LINEAR_MAP = re.compile(r"(^|_)(embed|relative|pos|position|rotary)")
Place = tuple[str, int, str]  # module, layer, role


@dataclass(frozen=True)
class Selection:
    """Which matrices: by globs of their names (without: every linear map of the blocks), by role, by layer.

    A role may be a glob too. What is empty chooses nothing away.
    """

    match: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        match: str | Sequence[str] | None = None,
        roles: str | Sequence[str] | None = None,
        layers: int | Sequence[int] | None = None,
    ) -> "Selection":
        """One or several of each, or None."""
        globs, named = ((one,) if isinstance(one, str) else tuple(one or ()) for one in (match, roles))
        return cls(globs, named, (layers,) if isinstance(layers, int) else tuple(layers or ()))

    def __str__(self) -> str:
        given = [f"--match {' '.join(self.match)}" if self.match else ""]
        given += [f"--role {' '.join(self.roles)}" if self.roles else ""]
        given += [f"--layer {' '.join(map(str, self.layers))}" if self.layers else ""]
        return " ".join(filter(None, given))


def layers_of(texts: Iterable[str]) -> list[int]:
    """The layers that "3" and "0-3" name. Raises BadInput for other text."""
    found: list[int] = []
    for text in texts:
        ends = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        require(first <= last < first + 10_000, f"--layer: expected a number or a range like 0-3, got {text}")
        found += range(first, last + 1)
    return found


def role_key(role: str) -> tuple[Any, ...]:
    """Sorts roles as a block runs them: q, k, v, o, gate, up, down (and query, key, value), then others by name.

    Of those that more of their path tells apart (encoder.SelfAttention.q), an encoder's come first, then attention.
    """
    path, _, last = role.rpartition(".")
    decodes, place = path.partition(".")[0] == "decoder", ORDER.get(last, len(ROLES))
    return bool(path), decodes, place == len(ROLES), path, place, last


def identity(matrix: Any) -> dict[str, Any]:
    """What tells a matrix (of matching or of relora_lab.sizes) apart in a row: MATRIX."""
    return dict(zip(MATRIX, (matrix.name, matrix.layer, matrix.role, matrix.rows, matrix.cols), strict=True))


def module_of(name: str) -> str:
    """The module that has the weight of that name."""
    return name.removesuffix(".weight")


def in_block(name: str) -> bool:
    """Is this in a numbered block?"""
    return bool(BLOCK.search(name))


def choose(names: Iterable[str], selection: Selection) -> dict[str, Place]:
    """(module, layer, role) of the selected names, in the model's order; layer is -1 outside numbered blocks.

    model.layers.3.mlp.up_proj is layer 3, role up. Kinds of matrices that would share a role (T5's q of self- and of
    cross-attention, of encoder and decoder) are told apart by more of their path; numbers in it make no kind.
    """
    fitting = [name for name in dict.fromkeys(names) if _fits(name, selection.match)]
    places = dict(zip(fitting, _places(fitting), strict=True))
    chosen = {name: place for name, place in places.items() if _is_at(place, selection)}
    return dict(sorted(chosen.items(), key=lambda item: _order(*item)))


def _fits(name: str, globs: Sequence[str]) -> bool:
    if not globs:
        return in_block(name) and not NO_LINEAR_MAP.search(module_of(name).rpartition(".")[2])
    return any(fnmatch.fnmatchcase(known_as, glob) for glob in globs for known_as in (name, module_of(name)))


def _is_at(place: Place, selection: Selection) -> bool:
    _, layer, role = place
    fits = not selection.roles or any(fnmatch.fnmatchcase(role, glob) for glob in selection.roles)
    return fits and (not selection.layers or layer in selection.layers)


def _places(names: Sequence[str]) -> list[Place]:
    modules = [module_of(name) for name in names]
    blocks = {module: BLOCK.search(f"{module}.") for module in modules}
    paths = {module: _kind(module, blocks[module]) for module in modules}
    by_role: dict[str, set[tuple[str, ...]]] = {}
    for path in paths.values():
        by_role.setdefault(_role(path[-1]), set()).add(path)
    roles = [_told_apart(paths[module], by_role[_role(paths[module][-1])]) for module in modules]
    layers = [int(found[1]) if (found := blocks[module]) else -1 for module in modules]
    return list(zip(modules, layers, roles, strict=True))


def _kind(module: str, block: re.Match[str] | None) -> tuple[str, ...]:
    """The path without block and expert numbers; one at its end (mlp.0, mlp.2) makes a kind with what is before."""
    if block:
        module = module[: block.start(1)].rstrip("._") + module[block.end(1) :]
    *path, last = module.split(".")
    path = [part for part in path if not re.fullmatch("[0-9]+", part)]
    return (*path[:-1], f"{path[-1]}.{last}") if path and re.fullmatch("[0-9]+", last) else (*path, last)


def _told_apart(path: tuple[str, ...], kinds: set[tuple[str, ...]]) -> str:
    if len(kinds) == 1:
        return _role(path[-1])
    shortenings: list[Callable[[tuple[str, ...]], tuple[str, ...]]] = [
        lambda kind: kind[-2:],
        lambda kind: kind[-3:],
        lambda kind: (kind[0], *kind[-1:]),
        lambda kind: (kind[0], *kind[-2:]),
    ]
    for shorten in shortenings:
        if len({shorten(kind) for kind in kinds}) == len(kinds):
            return ".".join(shorten(path))
    return ".".join(path)


def _role(last: str) -> str:
    role = last.removesuffix("_proj")
    return role if role in ROLES else last


def _order(name: str, place: Place) -> tuple[Any, ...]:
    _, layer, role = place
    return layer, role_key(role), [int(part) for part in re.findall(r"[0-9]{1,9}", name)], name
