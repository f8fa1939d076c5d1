"""The fourteen data sets of AdaptCLIPZS: how many classes they have, how their names are written, and which τ."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkEntry:
    """One data set."""

    name: str
    num_classes: int
    num_base: int
    """The first half of the classes in file order, rounded up: they are trained on."""
    num_novel: int
    template: str
    """For the name of a class alone; descriptions that begin with the kind of thing ("bird with …") need no more
    than "a photo of a {}"."""
    natural: bool
    """Has sentences on where the species lives and its taxonomy beside those on its looks."""
    tau: float
    """At the start."""


def _entry(name: str, num_classes: int, template: str = "a photo of a {}", natural: bool = False) -> BenchmarkEntry:
    base = math.ceil(num_classes / 2)
    return BenchmarkEntry(name, num_classes, base, num_classes - base, template, natural, 1.3 if natural else 2.0)


BENCHMARK: dict[str, BenchmarkEntry] = {
    entry.name: entry
    for entry in (
        _entry("CUB", 200, "a photo of a {} bird", natural=True),
        _entry("INaturalist21", 10_000, natural=True),
        _entry("NABirds", 404, natural=True),
        _entry("Flowers102", 102, "a photo of a {}, a type of flower", natural=True),
        _entry("StanfordCars", 196),
        _entry("FGVCAircraft", 100, "a photo of a {}, a type of aircraft"),
        _entry("Food101", 101, "a photo of {}, a type of food"),
        _entry("ImageNet", 1000),
        _entry("EuroSAT", 10, "a centered satellite photo of {}"),
        _entry("DTD", 47, "{} texture"),
        _entry("Sun397", 397),
        _entry("UCF101", 101, "a photo of a person doing {}"),
        _entry("CalTech101", 100),
        _entry("OxfordIIITPets", 37, "a photo of a {}, a type of pet"),
    )
}
"""By the names that the release uses."""
