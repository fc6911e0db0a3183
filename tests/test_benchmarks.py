"""benchmarks/gpu.py: a stage that dies or hangs stops nothing, and what is missing is said or installed."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from types import ModuleType

import pytest
from places import ROOT

SCRIPT = ROOT / "benchmarks/gpu.py"
# Stands for the stages: measures something, then goes on as its name says.
STAND_IN = """
import json, sys, time
name, path = sys.argv[1], sys.argv[sys.argv.index("--json") + 1]
machine = {"device": "none", "versions": {"torch": "0"}}
content = {"figures": {"fsd_images_per_s": 900.0}, "errors": {}, "machine": machine}
open(path, "w").write(json.dumps(content))
if name == "loop":
    time.sleep(60)
if name == "bits":
    raise RuntimeError("no bits here")
"""


@pytest.fixture
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_stages_that_hang_or_die_leave_their_figures(gpu, tmp_path):
    package = tmp_path / "gpu_stages"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    (tmp_path / "stages").mkdir()
    args = argparse.Namespace(work=tmp_path / "work", device="cpu", tiny=False)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for name in ("limits", "loop", "bits"):
        found = gpu._run(name, 5.0, 5.0, tmp_path, environment, args)
        (tmp_path / "stages" / f"{name}.json").write_text(json.dumps(found))
    found = gpu._collected(tmp_path, args)
    statuses = [found["stages"][name]["status"] for name in ("limits", "loop", "bits")]
    assert statuses == ["ok", "stopped at its time limit", "failed"]
    assert found["stages"]["bits"]["errors"] == {"bits": "RuntimeError: no bits here"}
    assert found["provenance"]["device"] == "none"
    assert [aim["found"] for aim in found["aims"]] == [900.0]
    table = gpu._table(found)
    assert "| at least 800 | 900.0 | reached |" in table
    assert "| loop | fsd_images_per_s | 900.0 |" in table
    found["aims"][0]["found"] = 700.0
    assert "| 700.0 | missed |" in gpu._table(found)


def test_the_limits_of_all_stages_are_under_eight_minutes(gpu):
    assert sum(gpu.STAGES.values()) < 480
    assert {aim.stage for aim in gpu.AIMS} <= set(gpu.STAGES)


def test_what_is_missing_is_installed_from_wheels(gpu, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "made_up-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made_up.py", "VALUE = 3\n")
        about = "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n"
        wheel.writestr("made_up-1.0.dist-info/METADATA", about)
        kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("made_up-1.0.dist-info/WHEEL", kind)
        wheel.writestr("made_up-1.0.dist-info/RECORD", "")
    place = gpu.install(["made_up"], wheels, tmp_path / "site")
    assert (place / "made_up.py").read_text() == "VALUE = 3\n"
    (wheels / "other-1.0-cp27-cp27m-win32.whl").write_bytes(b"no wheel for this Python")
    with pytest.raises(SystemExit):
        gpu.install(["other"], wheels, tmp_path / "site")


def ask(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_wheels_one_sentence_says_what_to_do(gpu, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.install(["pydantic"], tmp_path, tmp_path / "site")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pydantic" in said and "make wheels" in said


def test_an_unknown_stage_is_named(tmp_path):
    done = ask("--out", str(tmp_path), "limit")
    assert done.returncode == 2
    assert "there is no stage limit: there are limits, suite" in done.stderr


@pytest.mark.slow
def test_it_runs_on_a_cpu_in_small(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    tiny = ("--device", "cpu", "--tiny", "--work", str(work), "--out", str(out))
    done = ask(*tiny, "predict", "limits")
    logs = "".join(path.read_text()[-2000:] for path in (out / "stages").glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    found = json.loads((out / "gpu.json").read_text())
    assert list(found["stages"]) == ["limits", "predict"]
    assert all(stage["status"] == "ok" for stage in found["stages"].values())
    assert found["ceilings"]["bf16_tflops"] >= 0
    assert found["stages"]["predict"]["figures"]["student_images_per_s"] > 0
    made = found["provenance"]
    assert made["tiny"] and made["versions"]["torch"] and len(made["sources_sha256"]) == 64
    table = (out / "gpu.md").read_text()
    assert "| predict with YOLOX-S | at least 2000 |" in table and table in done.stdout
