"""The paper's Figures 4 to 7 from the units that have their data, drawn with matplotlib (extra ``bench``)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from advrbd.attacks.base import POISON
from advrbd.benchmark.paper_tables import outcome
from advrbd.errors import BenchmarkError

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.figure import Figure

LOWEST_LOSS = 0.01  # where the colours of Figure 4 begin; they are by order of magnitude, and the same for all images


def draw(units: Sequence[dict], out: Path, form: str = "png") -> list[Path]:
    """Draw what there is data for into the folder ``out``, as ``png`` or ``svg``, and return the files.

    Figures 4 to 6, one file a unit, need the step ``figures``; Figure 7, one a setting, units that differ in
    ``partition.rate``. Raises ``BenchmarkError`` where matplotlib is missing or no unit has any data.
    """
    plot = _matplotlib()
    drawn: list[tuple[str, Callable]] = []
    for unit in units:
        if data := unit.get("figures"):
            drawn.append((f"figure4-{unit['name']}", lambda figure, data=data: _landscape(figure, data["landscape"])))
            drawn.append((f"figure5-{unit['name']}", lambda figure, data=data: _divergence(figure, data["divergence"])))
            if data["rounds"]:
                drawn.append((f"figure6-{unit['name']}", lambda figure, data=data: _rounds(figure, data["rounds"])))
    for name, points in partition_rates(units).items():
        drawn.append((f"figure7-{name}", lambda figure, points=points: _rates(figure, points)))
    if not drawn:
        what = "run units with the defence figures, or with several --override partition.rate=..., first"
        raise BenchmarkError(f"no unit has data for figures; {what}")
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, paint in drawn:
        figure = plot.Figure(figsize=(6, 4), layout="constrained")
        paint(figure)
        paths.append(out / f"{name}.{form}")
        figure.savefig(paths[-1], dpi=150, metadata={"Date": None} if form == "svg" else {"Software": None})
    return paths


def partition_rates(units: Sequence[dict]) -> dict[str, list[tuple[float, dict]]]:
    """The points of Figure 7, partition rate and clean model, by the name that units have but for the rate."""
    series: dict[str, list[tuple[float, dict]]] = {}
    for unit in units:
        others = set(unit["overrides"]) - {"partition.rate"}
        if not others and (model := outcome(unit, "advrbd")):
            rate = unit["config"]["partition"]["rate"]
            name = "-".join(part for part in unit["name"].split("-") if not part.startswith("partition.rate="))
            series.setdefault(name, []).append((rate, model))
    return {name: sorted(points, key=lambda pair: pair[0]) for name, points in series.items() if len(points) > 1}


def _matplotlib() -> "ModuleType":
    try:
        from matplotlib import figure
    except ImportError as error:
        raise BenchmarkError("figures need matplotlib; install it with: pip install '.[bench]'") from error
    return figure


def _landscape(figure: "Figure", data: dict) -> None:
    """Figure 4: the loss around the undefended model's weights."""
    kinds = [kind for kind in data if kind != "radius"]
    highest = max(1.0, *(max(map(max, data[kind])) for kind in kinds))
    levels = [LOWEST_LOSS * (highest / LOWEST_LOSS) ** (number / 20) for number in range(21)]
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        steps = [data["radius"] * (2 * number / (len(data[kind]) - 1) - 1) for number in range(len(data[kind]))]
        losses = [[max(LOWEST_LOSS, loss) for loss in row] for row in data[kind]]
        shown = axes.contourf(steps, steps, losses, levels=levels, norm="log")
        axes.set(title=f"{kind} images", xlabel="direction 1")
    panels[0].set(ylabel="direction 2")
    decades = [10.0**power for power in range(-2, 10) if LOWEST_LOSS <= 10.0**power <= highest]
    figure.colorbar(shown, ax=list(panels), label="cross-entropy", ticks=decades, format="%g")


def _divergence(figure: "Figure", data: dict) -> None:
    """Figure 5: how far an adversarial patch moves the prediction, by role."""
    axes = figure.subplots()
    top = max(max(values) for values in data.values())
    for role in sorted(data, key=lambda role: role == POISON):
        axes.hist(data[role], bins=50, range=(0, top), density=True, alpha=0.6, label=f"{role} ({len(data[role])})")
    axes.set(xlabel="KL divergence, nats", ylabel="density")
    axes.legend()


def _rounds(figure: "Figure", data: list[dict]) -> None:
    """Figure 6: what enhancement does to accuracy and attack success rate."""
    numbers = [entry["round"] for entry in data]
    _two_lines(figure, numbers, data, "round of enhancement")


def _rates(figure: "Figure", points: list[tuple[float, dict]]) -> None:
    """Figure 7: accuracy and attack success rate over the partition rate."""
    _two_lines(figure, [rate for rate, _ in points], [model for _, model in points], "partition rate")


def _two_lines(figure: "Figure", places: list[float], pairs: list[dict], label: str) -> None:
    axes = figure.subplots()
    for key, name, mark in (("acc", "accuracy", "o-"), ("asr", "attack success rate", "s--")):
        if all(pair[key] is not None for pair in pairs):
            axes.plot(places, [100 * pair[key] for pair in pairs], mark, label=name)
    axes.set(xlabel=label, ylabel="%", ylim=(-2, 102))
    axes.legend()
