"""How many cases of one's own kind are flagged for nothing, and how many of another kind for a reason.

python tests/benchmarks/flags.py sarcoma.yaml hippocampus.yaml

Of each study, the training cases say what is usual. Its held-out cases, with their reference as the mask, should raise
no flag; the held-out scans of the others should.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from medseg.case_measure import CaseMeasure
from medseg.check import Examination, examine
from medseg.config import Config, load
from medseg.facts import Seen
from medseg.fingerprint import fingerprint
from medseg.preparation import Preparation, decide
from medseg.quality import Flag, judge_mask, judge_scan


def main() -> None:
    """Measure every study once, and print a line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+")
    configs = {path.stem: load(path) for path in parser.parse_args().studies}
    found = {name: examine(config) for name, config in configs.items()}
    for name, config in configs.items():
        training, held_out = sides(found[name])
        measured = fingerprint(training, config)
        preparation = decide(config.prepare, measured, config.data.select)
        told(f"{name}: held out", [of_case(case, config, measured.seen, preparation) for case in held_out])
        for other in configs.keys() - {name}:
            scans = [case.scan_facts for case in sides(found[other])[1]]
            told(f"{name}: scans of {other}", [judge_scan(scan, measured.seen, preparation) for scan in scans])


def sides(found: Examination) -> tuple[list[CaseMeasure], list[CaseMeasure]]:
    """Return the training cases and the held-out ones."""
    assert found.split is not None
    return [found.measures[case] for case in found.split.train], [found.measures[c] for c in found.split.validation]


def of_case(case: CaseMeasure, config: Config, seen: Seen, preparation: Preparation) -> list[Flag]:
    """Judge a scan and its reference."""
    labels = dict(zip(config.labels, case.label_facts, strict=True))
    return [*judge_scan(case.scan_facts, seen, preparation), *judge_mask(labels, seen, preparation.plane)]


def told(what: str, flags: list[list[Flag]]) -> None:
    """Print how many of the cases are flagged, and for what."""
    codes = Counter(flag.code for case in flags for flag in case)
    print(f"{what}: {sum(map(bool, flags))} of {len(flags)} flagged; {dict(codes.most_common())}")


if __name__ == "__main__":
    main()
