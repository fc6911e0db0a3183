"""fsd cost: the official numbers, side by side."""

import json

import pytest
from deploy_cases import write_weights
from places import GOLDEN
from typer.testing import CliRunner

from fsd import cli
from fsd.deploy.compare import Need, measure, words

INFO = json.loads((GOLDEN / "yolox_model_info.json").read_text())


def test_side_by_side_in_fresh_processes(tmp_path):
    classes = tuple(map(str, range(20)))
    sized = {"size": "yolox_nano"}
    nano = write_weights(tmp_path / "nano.pt", px=416, network=sized, classes=classes)
    small = write_weights(tmp_path / "small.pt", px=64)
    table = tmp_path / "cost.json"
    arguments = ["cost", str(nano), str(small), "--repeats", "3", "--json", str(table)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    needs = [Need(**row) for row in json.loads(table.read_text(encoding="utf-8"))]
    known = next(e for e in INFO["nano"] if e["num_classes"] == 20)
    first, second = needs
    assert first.params == known["params"] and first.input_px == 416
    assert round(first.gflops, 2) == known["reported_GFLOPs_at_416"]
    for need, path in zip(needs, (nano, small), strict=True):
        assert 0 < need.latency_ms_p50 <= need.latency_ms_p90
        assert need.file_mib == path.stat().st_size / 2**20
        # Weights, activations and the libraries' own buffers, not this process's hundreds of MiB.
        assert need.memory_mib is None or need.params * 4 / 2**20 < need.memory_mib < 500
    (line,) = words(needs)
    share = round(100 * second.params / first.params)
    assert f"needs {share} % of the parameters" in line
    assert line in result.output and f"{first.params / 1e6:.2f}" in result.output


def test_bad_input(tmp_path):
    good = write_weights(tmp_path / "good.pt", px=64)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        measure(tmp_path / "nothing.pt", 1)
    (tmp_path / "bad.pt").write_bytes(good.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"bad\.pt is not a weights\.pt"):
        measure(tmp_path / "bad.pt", 1)
    with pytest.raises(ValueError, match="at least 1"):
        measure(good, 0)
