"""`fsd explain`: where a run stands, and by what it differs from the one that is done."""

import fcntl

import pytest
from micro import micro, prepare, run

from fsd import files
from fsd.experiment import runs
from fsd.experiment.params import TEACHER
from fsd.train import explain, loop, run_store, stage


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return tmp_path


def planned(loaded):
    files.write_if_changed(run(TEACHER).plan, files.to_json(runs.resolve(loaded, run(TEACHER))))
    return loaded


def test_a_run_from_its_plan_to_its_end(monkeypatch):
    loaded = micro()
    assert explain.standing(loaded, run(TEACHER)).state == "not planned"
    planned(loaded)
    waiting = explain.standing(loaded, run(TEACHER))
    assert waiting.state == "waiting" and "fsd prepare --dataset micro" in waiting.why
    prepare(loaded)
    ready = explain.standing(loaded, run(TEACHER))
    assert ready.state == "planned" and "fsd train --dataset micro" in ready.why
    assert set(ready.parts) == {"plan", "data", "key"}

    real = loop.train_epoch

    def dying(*arguments, **named):
        if arguments[7] == 2:
            raise RuntimeError("something broke")
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "train_epoch", dying)
        with pytest.raises(RuntimeError):
            stage.fit(loaded, run(TEACHER), "test")
    failed = explain.standing(loaded, run(TEACHER))
    assert failed.state == "failed" and "after 2 of 4 epochs: something broke" in failed.why
    (run(TEACHER).folder / "failed.json").unlink()  # as where it was killed
    assert explain.standing(loaded, run(TEACHER)).state == "interrupted"
    with (run_store.STORES / ready.parts["key"] / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        running = explain.standing(loaded, run(TEACHER))
    assert running.state == "running" and "2 of 4 epochs" in running.why
    stage.fit(loaded, run(TEACHER), "test")
    assert explain.standing(loaded, run(TEACHER)).state == "trained"
    metrics = run(TEACHER).folder / "metrics.json"
    files.write_record(
        metrics, {"key": ready.parts["key"], "ap": 0.1, "per_class": {}, "evaluate": {}}
    )
    done = explain.standing(loaded, run(TEACHER))
    assert done.state == "done" and not done.differences
    assert "other code" not in done.why
    metrics.write_text(metrics.read_text().replace("0.1", "0.9"))
    edited = explain.standing(loaded, run(TEACHER))
    assert edited.state == "outdated" and "metrics.json was changed" in edited.why

    other = planned(micro(datasets__micro__teacher__train__lr=0.02))
    changed = explain.standing(other, run(TEACHER))
    assert changed.state == "planned"
    assert changed.differences == [(done.parts["key"], "network.train.lr", 0.01, 0.02)]


def test_a_run_s_name():
    assert explain.name_to_run("figures/cwd/3") == ("figures", "cwd", 3)
    for wrong in ("figures/cwd", "figures/cwd/x", "figures"):
        with pytest.raises(ValueError, match="write DATASET/METHOD/SEED"):
            explain.name_to_run(wrong)
