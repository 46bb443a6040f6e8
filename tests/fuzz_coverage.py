"""Coverage-guided fuzzing of the targets of ``fuzz_targets``; needs the extra ``fuzz`` (Atheris, on libFuzzer).

``python tests/fuzz_coverage.py TARGET SECONDS [SEED]`` changes the target's seeds so that ever more of its code is
reached, one target or ``all`` in turn. It exits with 1 where an answer can't be, an exception isn't an ``AdvrbdError``,
something outside was touched, or bytes took longer than ten seconds; they are in a file then, whose name it tells.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

READERS = ["advrbd", "PIL", "csv", "gzip", "json", "tarfile", "tomllib", "typer", "zipfile"]
MAX_BYTES, MAX_SECONDS, MAX_MEGABYTES = 16_384, 10, 2048

with atheris.instrument_imports(include=READERS):
    from fuzz_targets import TARGETS, furnished
    from watch import Watch


def fuzz(name: str, seconds: int, seed: int) -> None:
    """Doesn't return: libFuzzer ends the process."""
    target, above, watch = TARGETS[name], Path(tempfile.mkdtemp(prefix="fuzz-")), Watch()
    place, corpus = furnished(above / "place"), above / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(data)

    def changed(data: bytes, size: int, drawn: int) -> bytes:
        data = atheris.Mutate(data, size)
        return target.repaired(data) if drawn % 2 else data

    limits = f"-max_len={MAX_BYTES} -timeout={MAX_SECONDS} -rss_limit_mb={MAX_MEGABYTES} -max_total_time={seconds}"
    told = f"-seed={seed} -artifact_prefix=fuzz-{name}- -print_final_stats=1"
    arguments = [name, *limits.split(), *told.split(), str(corpus)]
    atheris.Setup(arguments, lambda data: target.check(data, place, watch), custom_mutator=changed)
    atheris.Fuzz()


def main(name: str, seconds: str, seed: str = "1") -> int:
    if name == "all":  # a process each, since each ends its own
        commands = [[sys.executable, __file__, target, seconds, seed] for target in TARGETS]
        return max(int(subprocess.run(command).returncode != 0) for command in commands)
    fuzz(name, int(seconds), int(seed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
