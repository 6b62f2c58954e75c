"""fio's report, recorded from a job in a domU."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.errors import RigError
from emu.xen import fio

REPORT = (Path(__file__).parent / "transcripts/fio-verify.json").read_text()


def test_report_is_read() -> None:
    found = fio.parse(f"fio: a note before it\n{REPORT}")
    assert (found.error, found.write_bytes, found.read_bytes) == (0, 16 << 20, 16 << 20)
    assert found.write_ios == found.read_ios > 100
    assert 0 < found.seconds < 300


@pytest.mark.parametrize("text", ["", "fio: /dev/xvdz: No such file", "{}", '{"jobs": []}'])
def test_bad_report_is_refused(text: str) -> None:
    with pytest.raises(RigError, match="fio's report is no report"):
        fio.parse(text)
