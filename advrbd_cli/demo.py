"""``advrbd demo``: the main job on a small real image set with a known backdoor, in some minutes, offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from advrbd_cli import clean, console, options, scan

if TYPE_CHECKING:
    import numpy as np

    from advrbd.attacks.base import Attack
    from advrbd.benchmark.metrics import Detection
    from advrbd.model.factory import Network

TARGET = 1
POISON_RATE = 0.05


def demo(
    out: Annotated[Path, typer.Option(help="New folder for everything that the demo makes.")] = Path("advrbd-demo"),
    device: options.DeviceName = "auto",
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    progress: options.ShowProgress = None,
) -> None:
    """Plant a backdoor in handwritten digits, scan and clean them, and compare the result with what was planted."""
    console.state.quiet, console.state.verbose = quiet, verbose
    from advrbd.writing import NewFolder, check_target_folder, write_whole

    check_target_folder(out, Path(__file__).parent, "the program in")

    from advrbd.attacks import BadNets
    from advrbd.attacks.plant import plant
    from advrbd.benchmark.digits import digits, write_image_folder
    from advrbd.benchmark.metrics import detection
    from advrbd.config import Config
    from advrbd.output import decisions_csv
    from advrbd.pipeline import clean as run_clean
    from advrbd.pipeline import scan as run_scan
    from advrbd.pipeline import train_plainly
    from advrbd.reports.html import render_html
    from advrbd.reports.tables import render

    images, labels, held_out, held_out_labels = digits(seed)
    attack, config = BadNets(seed), Config(device=device, seed=seed)
    with NewFolder(out) as folder:
        write_image_folder(images, labels, folder / "digits")
        truth = plant(folder / "digits", folder / "poisoned", attack, str(TARGET), POISON_RATE, seed)
        console.say(
            f"{len(truth)} handwritten digits, a backdoor to class {TARGET} planted in {POISON_RATE:.0%} of them"
        )
        with console.Narrator(progress) as narrator:
            report = run_scan(folder / "poisoned", config, notify=narrator)
            write_whole(folder / "report.json", render(report, "json"))
            write_whole(folder / "report.html", render_html(report, out / "poisoned", place=folder / "poisoned"))
            scan.summarise(report, out / "report.json", out / "report.html")
            cleaned = run_clean(
                folder / "poisoned", folder / "clean", config, report=folder / "report.json", notify=narrator
            )
            undefended = train_plainly(folder / "poisoned", config, notify=narrator)
        write_whole(folder / "clean-report.csv", decisions_csv(cleaned.report, cleaned.decisions))
        cleaned.save_model(folder / "clean.safetensors")
    clean.summarise(cleaned, out / "clean", out / "clean-report.csv", out / "clean.safetensors")
    found = detection(report.files, {entry.path: entry.role for entry in truth})
    _compare(found, undefended, cleaned.network, attack, held_out, held_out_labels)


def _compare(
    found: "Detection",
    undefended: "Network",
    cleaned: "Network",
    attack: "Attack",
    images: "np.ndarray",
    labels: "np.ndarray",
) -> None:
    import numpy as np

    from advrbd.benchmark.metrics import accuracy, attack_success_rate

    is_victim = attack.victims(labels, TARGET)
    wanted = attack.poisoned_label(labels, TARGET, 10)
    table = Table("", "accuracy", "attack success rate", title="on digits that were held out")
    for name, network in (("trained on the folder as it came", undefended), ("clean model", cleaned)):
        victims = zip(images[is_victim], wanted[is_victim], strict=True)
        success = attack_success_rate(network, attack, victims, np.random.default_rng(attack.seed))
        table.add_row(name, f"{accuracy(network, images, labels):.3f}", f"{success:.3f}")
    console.show(table)
    console.say(
        f"planted {found.poisoned} poisoned files, found {found.found} of them "
        f"({found.true_positive_rate:.1%}); {found.false_alarms} false alarms among {found.clean} clean files"
    )
