"""What is published about reports is what the code does."""

from __future__ import annotations

import json
from pathlib import Path

from medseg.metrics import EMPTY_RULE, METRICS
from medseg.report import json_schema

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_published_schema_is_the_code_s() -> None:
    published = json.loads((DOCS / "report.schema.json").read_text("utf-8"))
    renew = "from medseg.report import json_schema; json.dumps(json_schema(), indent=1)"
    assert published == json_schema(), f"docs/report.schema.json is not what the code writes; renew it by {renew}"


def test_every_definition_stands_in_the_page_of_metrics() -> None:
    text = " ".join((DOCS / "metrics.md").read_text("utf-8").split())
    assert EMPTY_RULE in text
    for metric in METRICS:
        assert f"`{metric.name}`" in text
        assert metric.definition.replace("|", "\\|") in text, metric.name
