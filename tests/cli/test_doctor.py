"""The examination of machine and cluster, on what sinfo prints."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from micro import micro

from fsd import doctor
from fsd.cli import main
from fsd.experiment import gpus

SINFO = """\
cpu*|up|16|64000|(null)|1-00:00:00|idle
gpu|up|32|256000+|gpu:a100:4(S:0-1)|2-00:00:00|mix
gpu|up|8|64000|gpu:v100:2|2-00:00:00|down*
short|up|8|32000|gpu:1|30:00|idle
"""


def request(**changes) -> doctor.Request:
    plain = doctor.Request("train", "gpu", 8, 32000, 1, None, 1440)
    return plain._replace(**changes)


def test_sinfo_is_read():
    rows = doctor.nodes(SINFO)
    assert [r.partition for r in rows] == ["cpu", "gpu", "gpu", "short"]
    assert [r.default for r in rows] == [True, False, False, False]
    assert [r.minutes for r in rows] == [1440, 2880, 2880, 30]
    assert [r.gpus for r in rows] == [{}, {"a100": 4}, {"v100": 2}, {"": 1}]
    assert [r.up for r in rows] == [True, True, False, True]
    assert rows[1].memory_mb == 256000


@pytest.mark.parametrize(
    ("changes", "ok", "says"),
    [
        ({}, True, "fits partition gpu"),
        ({"partition": "short"}, False, "1440 minutes (runtime), partition short offers 30"),
        ({"partition": None}, False, "1 GPUs (gpu), partition cpu offers 0"),
        ({"partition": None, "gpus": 0}, True, "fits partition cpu"),
        ({"partition": "big"}, False, "not a partition big; there are: cpu, gpu, short"),
        ({"cpus": 64}, False, "64 CPUs (cpus_per_task), partition gpu offers 32"),
        ({"memory_mb": 300000}, False, "300000 MB (mem_mb)"),
        ({"gpus": 8}, False, "8 GPUs (gpu)"),
        ({"gpu_model": "h100"}, False, "of model h100"),
        ({"gpu_model": "a100", "gpus": 4}, True, "fits"),
        ({"gpu_model": "v100"}, False, "out of service"),
        ({"gpu_model": "v100", "cpus": 16}, False, "no single node"),
    ],
)
def test_a_stage_that_can_never_start_is_named(changes, ok, says):
    finding = doctor.fits(request(**changes), doctor.nodes(SINFO))
    assert finding.ok is ok
    assert says in finding.what


def test_the_profile_s_wishes():
    profile = {
        "default-resources": {"runtime": 60, "mem_mb": 8000, "slurm_partition": "gpu"},
        "set-resources": {
            "train": {"gpu": 1, "cpus_per_task": 8, "mem_mb": 32000, "runtime": "24h"},
            "teacher": {"gres": "gpu:a100:2", "runtime": "1d12h"},
        },
    }
    asked = {r.stage: r for r in doctor.requests(profile)}
    assert asked["train"] == doctor.Request("train", "gpu", 8, 32000, 1, None, 1440)
    assert asked["teacher"] == doctor.Request("teacher", "gpu", 1, 8000, 2, "a100", 2160)
    assert asked["prepare"].minutes == 60
    with pytest.raises(ValueError, match="minutes, or as in 24h"):
        doctor.minutes("a day")


def test_the_shipped_profile_can_be_read():
    profile = yaml.safe_load(doctor.PROFILE.read_text(encoding="utf-8"))
    assert {r.stage: r.gpus for r in doctor.requests(profile)}["train"] == 1


def test_missing_sources_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = micro()
    findings = doctor.sources(loaded, loaded.experiments["fall_cpu"])
    assert [f.ok for f in findings] == [False, False]
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/fall.tar").touch()
    findings = doctor.sources(loaded, loaded.experiments["fall_cpu"])
    assert sorted(f.ok for f in findings) == [False, True]
    assert not doctor.sources(loaded, loaded.experiments["smoke"])


def test_the_command_fails_where_something_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fsd", "doctor", "--experiment", "smoke"])
    monkeypatch.setattr(doctor, "slurm", lambda: [doctor.Finding(False, "train: no GPU here")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "train: no GPU here" in capsys.readouterr().out


@pytest.fixture
def box(monkeypatch, tmp_path):
    """A machine with a device file of a GPU."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)


def test_a_gpu_that_torch_cannot_use_is_missing_unless_the_cpu_is_wanted(box, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {f.what: f.ok for f in doctor.machine()}
    assert [ok for what, ok in found.items() if "promises a GPU, but torch" in what] == [False]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = {f.what: f.ok for f in doctor.machine()}
    assert not any("promises" in what for what in found)
    assert [ok for what, ok in found.items() if "hides all GPUs" in what] == [None]


@pytest.mark.parametrize(("major", "told"), [(7, True), (8, False), (9, False)])
def test_a_gpu_without_bfloat16_is_told(box, monkeypatch, major, told):
    facts = SimpleNamespace(total_memory=16 * 2**30, name="T4", major=major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    found = {f.what: f.ok for f in doctor.machine()}
    assert found["GPU 0: T4, 16 GiB"] is True
    assert [ok for what, ok in found.items() if "GPU 0 has no bfloat16" in what] == [None] * told
