"""One file a figure. `data(runs)` holds every number drawn, `draw(frame, ax)` draws it, `describe(frame)` says it.

The docstring's first line is the figure's title. SIZE is in inches. A method has one colour everywhere, and a label
one look in every figure of a report (`labelled`). A figure that is empty is left out of a report where OPTIONAL is
True. The only place that knows matplotlib.
"""

import math
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from analysis import modules
from relora_lab import files
from relora_lab.errors import printable

ONE_COLUMN, TWO_COLUMNS = 3.3, 6.8
CROWD = 6  # labels that fit into axes
LONGEST = 24  # letters of a role

# Okabe and Ito's colours and three more: the colour-blind tell them apart. Dashes tell lines apart in grey.
METHODS = {
    "full": "#0072B2",
    "relora": "#D55E00",
    "lora": "#009E73",
    "low_rank": "#CC79A7",
    "online_relora": "#B2182B",
    "redora": "#E69F00",
    "repissa": "#762A83",
    "reloqra": "#56B4E9",
    "galore": "#4D4D4D",
    "adam_mini": "#000000",
}
COLOURS = list(METHODS.values())
OWN = "#8C6D31"  # of a method that is not among them
SHADES = [0.0, 0.45, -0.35, 0.7]  # of a method's colour, for its labels: the share of white, or of black
DASHES = ["-", (0, (8, 1)), (0, (4, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1))]


def available() -> list[ModuleType]:
    """The modules of this folder, in the order in which a report has them."""
    return modules.of_package(sys.modules[__name__])


def lab_style() -> AbstractContextManager[None]:
    """`with lab_style():` figures have the lab's look inside the block."""
    with resources.as_file(resources.files(__name__).joinpath("lab.mplstyle")) as path:
        return matplotlib.style.context(str(path))


def make(module: ModuleType, frame: pd.DataFrame) -> Figure:
    """The figure of a module of this folder, drawn from what its `data` gave."""
    with _quiet(), lab_style():
        figure = Figure(figsize=module.SIZE, layout="constrained")
        module.draw(frame, figure.subplots())
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.execute(figure)  # makes ticks and labels, in this style too
        figure.set_layout_engine("none")  # all is in its place: saving need not find it again
        return figure


def show(module: ModuleType, runs: pd.DataFrame) -> Figure | None:
    """Say what the figure of a module shows of these runs, and give it: a notebook's cell that ends so shows it."""
    frame = module.data(runs)
    if frame.empty:
        print("Nothing to show: none of these runs has come that far.")
        return None
    print(textwrap.fill(module.describe(frame), 100))
    return make(module, frame)


def save(figure: Figure, file: str | Path | IO[bytes], kind: str = "") -> None:
    """Write a figure as PNG, PDF or SVG (by default as the path's suffix says), the same bytes each time.

    A path is written whole or not at all.
    """
    if isinstance(file, str | Path):
        with files.new_file(Path(file)) as writing, writing.open("wb") as opened:
            save(figure, opened, kind or Path(file).suffix[1:])
        return
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with _quiet(), lab_style():
        figure.savefig(file, format=kind, metadata=undated.get(kind))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a warning a letter for names in scripts that the font has not; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        yield


def by_name(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(label, its rows) in the labels' order, for what is said of them: whole names, on one line."""
    for label, rows in frame.groupby(frame["label"].astype("category"), observed=True):
        yield printable(str(label)), rows


def labelled(frame: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The frame with labels in the order of `runs`, and `method` and `variant` (load_runs), which make a look."""
    frame = frame.astype({"label": runs["label"].dtype})
    if not {"method", "variant"} <= set(runs):
        return frame
    return frame.join(runs.drop_duplicates("label").set_index("label")[["method", "variant"]], on="label")


def by_label(frame: pd.DataFrame, *, letters: int = 20) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """(label, cut to so many letters, its rows, the line style that is its own in every figure), in their order."""
    labels = frame["label"].astype("category")
    names = _told_apart([_of_legend(str(label), letters) for label in labels.cat.categories])
    for number, label in enumerate(labels.cat.categories):
        rows = frame[labels == label]
        if len(rows):
            yield names[number], rows, _look(rows.iloc[0], number)


def _look(row: pd.Series, number: int) -> dict[str, Any]:
    """Colour and dashes of a label: by method and variant; where those are not known, by its place."""
    if "variant" not in row:
        return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
    place = list(METHODS).index(row["method"]) if row["method"] in METHODS else len(METHODS)
    share = SHADES[row["variant"] % len(SHADES)]
    pure, other = to_rgb([*COLOURS, OWN][place]), float(share > 0)
    red, green, blue = ((1 - abs(share)) * part + abs(share) * other for part in pure)
    return {"color": to_hex((red, green, blue)), "linestyle": DASHES[(place + row["variant"]) % len(DASHES)]}


def _of_legend(label: str, letters: int) -> str:
    """A label as a legend shows it: not hidden for being empty or for its first letter, not too long."""
    text = printable(label)
    # Names of a grid often begin alike, or end alike.
    short = text if len(text) <= letters else f"{text[: letters // 2]}…{text[letters // 2 + 1 - letters :]}"
    return (" " if short.startswith("_") or not short else "") + plain(short)


def _told_apart(names: list[str]) -> list[str]:
    """The names, with a number those that others before them look like."""
    before = [names[:number].count(name) for number, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, before, strict=True)]


def of_role(role: str) -> str:
    """A role as axes name it: of a long one the ends, which tell it from others."""
    text = printable(role).replace("SelfAttention", "self").replace("EncDecAttention", "cross")  # T5's
    return plain(text if len(text) <= LONGEST else f"{text[:8]}…{text[9 - LONGEST :]}")


def plain(text: str) -> str:
    """Foreign text on one line that matplotlib does not take for mathematics."""
    return printable(text).replace("$", r"\$")


def fitting(letters: float, inches: float) -> float:
    """The size in points, 8 at most, in which so many letters are no wider."""
    return min(8.0, 72 * inches / (0.65 * max(letters, 1)))


def add_legend(ax: Axes, *, below: bool = False, **options: Any) -> None:
    """A legend in the axes that takes no room from them; of a crowd below them, on a figure made higher for it."""
    handles = options.pop("handles", None) or ax.get_legend_handles_labels()[0]
    if len(handles) <= CROWD and not below:
        ax.legend(handles=handles, **options).set_in_layout(False)
        return
    width, height = _figure(ax).get_size_inches()
    columns = min(len(handles), max(1, int(width / 1.6)))
    figure = make_higher(ax, height + 0.16 * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def add_band(ax: Axes, rows: pd.DataFrame, look: dict[str, Any]) -> None:
    """The seeds' range, from low to high at each step, where there are several seeds."""
    if rows["n"].max() > 1:
        ax.fill_between(rows["step"], rows["low"], rows["high"], color=look["color"], alpha=0.2, linewidth=0)


def handles_of(panels: Iterable[Axes], frame: pd.DataFrame) -> list[Any]:
    """A handle for each label that is in any of the panels, in the labels' order."""
    found: dict[str, Any] = {}
    for panel in panels:
        found |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    return [found[label] for label, _, _ in by_label(frame) if label in found]


def make_higher(ax: Axes, inches: float) -> Figure:
    """The figure of `ax`, now of at least this height."""
    figure = _figure(ax)
    figure.set_size_inches(figure.get_figwidth(), max(figure.get_figheight(), inches))
    return figure


def tighten(ax: Axes) -> None:
    """Leave little room between the panels of the figure of `ax`."""
    engine = _figure(ax).get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(h_pad=0.02, hspace=0.0)


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def split(ax: Axes, rows: int, columns: int, **options: Any) -> list[Axes]:
    """Panels in the place of `ax`, row by row; options as `Figure.subplots` and gridspec take them."""
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError("draw into axes made by subplots")
    shared = {name: options.pop(name) for name in ("sharex", "sharey") if name in options}
    grid = place.subgridspec(rows, columns, **options)
    ax.remove()
    return list(grid.subplots(squeeze=False, **shared).flat)
