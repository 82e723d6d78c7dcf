"""`medseg doctor`."""

from __future__ import annotations

from medseg.cli.terminal import DONE, SOME_REJECTED, out, plain, width


def doctor() -> int:
    """Say what this machine can do, and what is missing."""
    from medseg.doctor import examine
    from medseg.listing import hanging

    findings = examine()
    for finding in findings:
        out.print(plain(hanging(str(finding), width(), rest=" " * 6)))
    return DONE if all(finding.good for finding in findings) else SOME_REJECTED
