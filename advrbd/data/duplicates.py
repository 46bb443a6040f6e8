"""Files that are the same byte for byte: what the user should know of them before believing a verdict.

They are scanned like all others. A group of copies that a model learns by heart may be convicted, and copies are no
excuse: an attacker could plant those of one stamped image. But whoever looks at the suspects has to know.
"""

from collections import Counter, defaultdict

from advrbd.data.folder import OK, FolderIndex

MANY = 10  # copies in one class: as many as a planted group needs to be seen
NAMED = 3


def warnings_of(index: FolderIndex) -> tuple[str, ...]:
    """What to say of the copies among the readable files of ``index``, which have their SHA-256; nothing, mostly."""
    copies = Counter((file.sha256, file.label) for file in index.files if file.status == OK)
    labels: dict[str, set[int]] = defaultdict(set)
    for sha256, label in copies:
        labels[sha256].add(label)
    told = []
    if torn := sum(count for (sha256, _), count in copies.items() if len(labels[sha256]) > 1):
        told.append(
            f"{torn} files have copies in another class, byte for byte: their labels contradict each other, and what a "
            "model can't learn hides what it could"
        )
    largest: Counter[int] = Counter()
    for (_, label), count in copies.items():
        largest[label] = max(largest[label], count)
    if many := [label for label in sorted(largest) if largest[label] >= MANY]:
        named = ", ".join(f"{index.classes[label]!r} has one {largest[label]} times" for label in many[:NAMED])
        more = f", and {len(many) - NAMED} more classes" if len(many) > NAMED else ""
        told.append(
            f"copies, byte for byte: class {named}{more}. Models learn such a file by heart, as they do a trigger; "
            "suspects that are copies may be no more than that"
        )
    return tuple(told)
