"""Measures of cases, kept until their files change: a second look at a data set reads nothing but what is new."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter

from medseg.case import Case, Finding
from medseg.case_measure import CaseMeasure, ChannelMeasure
from medseg.config.settings import Config
from medseg.errors import InputError
from medseg.facts import LabelFacts
from medseg.io.atomic import atomic_path
from medseg.io.hashes import Hashes
from medseg.reference import READ_BY

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever the same files would give other measures."""

Measured = tuple[CaseMeasure, tuple[Finding, ...]]
"""What `measure_case` gives."""

_PLAIN: TypeAdapter[Measured] = TypeAdapter(Measured)

_NOUNS = [[field.name for field in fields(noun)] for noun in (CaseMeasure, ChannelMeasure, LabelFacts, Finding)]

DIGEST = hashlib.sha256().digest_size


class Measures:
    """A folder of measures.

    Each file is named by a hash of everything its measures depend on: the content of the case's files, the settings
    that references are read by, and the versions. It holds the hash of its own content, so that damage is told.

    Args:
        folder: of the measures; made when the first is kept.
        hashes: of the cases' files.
        others: folders of that kind to look into as well.

    Attributes:
        hashes: as above.
    """

    def __init__(self, folder: Path, hashes: Hashes, others: Sequence[Path] = ()) -> None:
        self._folders = (folder, *others)
        self.hashes = hashes

    def find(self, case: Case, config: Config) -> Measured | None:
        """Return what is known of a case; None when nothing is, or its files cannot be read."""
        try:
            name = self._name(case, config)
        except InputError:
            return None
        for folder in self._folders:
            try:
                content = (folder / name).read_bytes()
                digest, packed = content[:DIGEST], content[DIGEST:]
                if digest == hashlib.sha256(packed).digest():
                    return _PLAIN.validate_json(zlib.decompress(packed))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, zlib.error):  # pydantic's ValidationError is a ValueError
                log.debug("measures cannot be used: the case is measured anew", exc_info=True)
        return None

    def keep(self, case: Case, config: Config, measured: Measured) -> None:
        """Keep what was measured.

        Raises:
            InputError: USAGE-PATH when a file of the case is gone.
            RunError: RUN-WRITE.
        """
        packed = zlib.compress(_PLAIN.dump_json(measured), 1)
        with atomic_path(self._folders[0] / self._name(case, config)) as partial:
            partial.write_bytes(hashlib.sha256(packed).digest() + packed)

    def _name(self, case: Case, config: Config) -> str:
        references = [item if isinstance(item, Path) else item.path for item in case.references]
        files = [path for scan in case.scans for path in scan.files]
        inputs = {
            "format": [FORMAT, _NOUNS],
            "versions": {name: version(name) for name in ("medseg", "nibabel", "numpy", "pydicom")},
            "settings": config.model_dump(mode="json", include={**READ_BY, "data": {"resample_references", "select"}}),
            "case": [case.id, *(path.name for path in (*files, *references))],  # findings may quote them
            "files": [len(files), *(self.hashes.of(path) for path in (*files, *references))],
        }
        return hashlib.sha256(json.dumps(inputs, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]
