"""`onward quantize`: what int8 would change, and the refusal where it would break a promise or do nothing."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from onward import main
from tests.bundles import make_bundle
from training.config import Cell


def test_int8_that_mixes_sessions_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel scales a whole batch at once; the numbers before and after are told, and nothing is published."""
    make_bundle(tmp_path, units=32)
    done = CliRunner().invoke(main, ["quantize", str(tmp_path / "tiny" / "1")])
    assert done.exit_code == 1
    assert "with int8 a session's answers depend on its neighbours: a batch of 7 rows against row" in done.stderr
    sizes = re.search(r"graph, bytes +([\d,]+) +([\d,]+)", done.stdout)
    assert sizes is not None
    before, after = (int(size.replace(",", "")) for size in sizes.groups())
    assert before == (tmp_path / "tiny" / "1" / "model.onnx").stat().st_size
    assert after < 0.6 * before
    assert not caplog.records
    assert re.search(r"a step of 32, us +\d", done.stdout)
    assert 0 < float(done.stdout.split()[-1]) < 0.1
    assert [version.name for version in (tmp_path / "tiny").iterdir()] == ["1"]


@pytest.mark.parametrize("cell", ["gru", "rnn_tanh"])
def test_cells_without_a_kernel_are_refused(cell: Cell, tmp_path: Path) -> None:
    """Quantising the readout alone would be a new version for nothing."""
    make_bundle(tmp_path, cell=cell)
    done = CliRunner().invoke(main, ["quantize", str(tmp_path / "tiny" / "1")])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("onward: ONNX Runtime has int8 kernels for no recurrent cell but the LSTM")
    assert [version.name for version in (tmp_path / "tiny").iterdir()] == ["1"]
