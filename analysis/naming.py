"""What a matrix's name tells: its module, layer and role; and which names are chosen."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from relora_lab.errors import require

ROLES = ["q", "k", "v", "o", "gate", "up", "down"]
IN_BLOCK = re.compile(r"(^|\.)\d+\.")
NO_LINEAR_MAP = re.compile(r"embed|relative|position|rotary")
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
        ends = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
        require(ends is not None, f"--layer: expected a number or a range like 0-3, got {text}")
        assert ends is not None
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return found


def role_key(role: str) -> tuple[int, str]:
    """Sorts roles as a block runs them: q, k, v, o, gate, up, down, then others by name."""
    return ROLES.index(role) if role in ROLES else len(ROLES), role


def module_of(name: str) -> str:
    """The module that has the weight of that name."""
    return name.removesuffix(".weight")


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
        return bool(IN_BLOCK.search(name)) and not NO_LINEAR_MAP.search(name)
    return any(fnmatch.fnmatchcase(known_as, glob) for glob in globs for known_as in (name, module_of(name)))


def _is_at(place: Place, selection: Selection) -> bool:
    _, layer, role = place
    fits = not selection.roles or any(fnmatch.fnmatchcase(role, glob) for glob in selection.roles)
    return fits and (not selection.layers or layer in selection.layers)


def _places(names: Sequence[str]) -> list[Place]:
    modules = [module_of(name) for name in names]
    paths = {module: tuple(part for part in module.split(".") if not part.isdigit()) for module in modules}
    by_role: dict[str, set[tuple[str, ...]]] = {}
    for path in paths.values():
        by_role.setdefault(_role(path[-1]), set()).add(path)
    numbers = [re.search(r"(?:^|\.)(\d+)(?=\.|$)", module) for module in modules]
    roles = [_told_apart(paths[module], by_role[_role(paths[module][-1])]) for module in modules]
    return [(m, int(n[1]) if n else -1, role) for m, n, role in zip(modules, numbers, roles, strict=True)]


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
    return layer, role_key(role), [int(p) if p.isdigit() else -1 for p in name.split(".")], name
