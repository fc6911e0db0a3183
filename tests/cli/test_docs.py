"""Every command and snippet of the pages is typed here, and does what its page says of it, or stands
in CANNOT with the reason. The experiment is `tiny`, which all of them share, trained once."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree
import yaml
from docs_left import LEAVES, STUDENT
from docs_pages import PAGES, ROOT, blocks, commands, variables, write_inputs
from typer.main import get_command

from fsd import cli
from fsd.experiment.schema import Data, Groups, Method

# The names of the pages and what stands for them here.
STAND_FOR = {
    "runs/figures/": "runs/figures_tiny/",
    " figures/cwd/0": " figures_tiny/cwd/0",
    "--dataset fall_nano": "--dataset figures_tiny",
    "--dataset NAME": "--dataset figures_tiny",
    "-dataset D --method M --seed S": "-dataset figures_tiny --method cwd --seed 0",
    "--nproc-per-node 4": "--nproc-per-node 2",
    "/tmp/seen": "seen",
}
# Beginnings of commands that are not typed, and why.
CANNOT = {
    "make ": "sets up .venv from the network; continuous integration types them, and its targets "
    "are the commands that are typed here",
    "pip install": "a download",
    "ssh ": "another machine",
    "tmux": "needs a terminal",
    "git clone": "a download",
    "snakemake --cores all --profile slurm": "needs a Slurm: test_slurm.py types it",
    "snakemake --cores all --config experiment=fall_cpu": "photographs that are not ours to publish",
    "fsd prepare --dataset voc2007": "900 MB from the network: test_download.py has a server for it",
    "python -m pytest": "test_adding_a_method.py follows that page",
    "python examples/torchvision_detectors.py": "test_examples.py runs it",
    "python benchmarks/": "minutes, on a GPU",
    "dvc remote add": "test_orders.py shares a tree so, to its end",
    "dvc commit": "as before",
    "dvc add": "as before",
    "dvc push": "as before",
    "dvc pull": "as before",
    "git add": "as before",
}
# Command -> exit code, and regular expressions of what it prints.
SAYS = {
    "fsd check": (0, "params.yaml is valid. Active experiment: tiny", r"figures_tiny/cwd/0 +done"),
    "snakemake --cores all": (0, "Nothing to be done"),
    "dvc repro": (0, r"fsd train --dataset figures_tiny", "already trained"),
    "fsd show": (
        0,
        r"\| figures_tiny \| cwd",
        r"tiny\.md, \.csv and \.tex",
        r"tiny\.html",
        "MLflow",
    ),
    "fsd audit --format yolo --source my_folder": (1, r"copy in train", "pairs side by side"),
    "fsd explain figures/cwd/0": (0, "figures_tiny/cwd/0: done; trained and evaluated", "plan "),
    "fsd doctor": ((0, 1), r"✓ torch \d", "free disk"),
    "fsd doctor --experiment main": (1, "✗ fall: .* is not there", "voc2007: "),
    "fsd methods": (0, "couples images", "baseline", "fsd_release"),
    "snakemake --unlock": (0,),
    "snakemake --rulegraph mermaid-js": (0, "flowchart TB"),
    "fsd audit --dataset fall_nano": (0, "figures_tiny"),
    "fsd audit --format voc --source mine.tar --splits train=trainval,test=test": (0, "mine"),
    "fsd prepare --dataset NAME": (0, "figures_tiny: train 32, val 8, test 16 images"),
    "fsd audit --dataset NAME": (0, "figures_tiny"),
    "torchrun --nproc-per-node 4 -m fsd train --dataset D --method M --seed S": (
        0,
        "already trained",
    ),
    "fsd predict $W photos/": (0, rf"detections in 5 pictures: results/predict/{STUDENT}"),
    "fsd predict $W 'photos/**/*.jpg' walk.mp4": (0, "detections in 13 pictures"),
    "fsd predict $W photos/ --score 0.5 --iou 0.5 --out /tmp/seen": (0, "in 5 pictures: seen"),
    "fsd cost results/runs/figures/teacher/0/weights.pt $W --json cost.json": (
        *(0, "params", "GFLOPs", "p50", "p90", "memory", "file"),
        r"figures_tiny/fsd_release/0 needs \d+ % of the parameters",
    ),
    "fsd export $W --format onnx": (
        *(0, "equal to PyTorch on 16 test images of figures_tiny"),
        rf"written: results/export/{STUDENT}\.onnx",
    ),
    "fsd export $W --format onnx --nms --out student.onnx": (0, r"written: student\.onnx"),
    "fsd export $W --format onnx --int8 static --out student-int8.onnx": (
        *(0, r"AP of float32: \d", r"AP of int8 static: \d", r"written: student-int8\.onnx"),
    ),
    "fsd export $W --format mlflow --out model": (0, "written: model"),
    "mlflow models serve --model-uri model --env-manager local --host 127.0.0.1 --port 5001": (0,),
    """printf '{"dataframe_records": [{"image": "%s"}], "params": {"score": 0.3}}' """
    '"$(base64 -w0 photos/one.png)" > request.json': (0,),
    "curl -s http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
    "--data @request.json": (0, '{"predictions": .*"width": 160, "height": 160, "detections": '),
}
COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
TYPED = [command for command in COMMANDS if not command.startswith(tuple(CANNOT))]


def test_every_command_is_typed_or_has_a_reason():
    assert set(TYPED) == set(SAYS)
    unused = [start for start in CANNOT if not any(c.startswith(start) for c in COMMANDS)]
    assert unused == []
    for name in re.findall(r"test_\w+\.py", str(CANNOT)):
        assert list((ROOT / "tests").rglob(name))


def test_all_code_of_the_pages_is_of_a_known_kind():
    kinds = {(block.page, block.kind) for page in PAGES for block in blocks(page)}
    assert not [page for page, kind in kinds if kind == "unknown"]
    assert {page for page, kind in kinds if kind == "python"} == {"adding-a-method.md", "use.md"}
    assert {page for page, kind in kinds if kind == "yaml"} == {"adding-a-method.md", "data.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_fsd_that_running_text_names_exist(page):
    known = get_command(cli.app).commands
    for name in re.findall(r"`fsd ([a-z]+)[` ]", page.read_text(encoding="utf-8")):
        assert name in known


def test_the_pages_name_files_that_exist():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_yaml_of_the_pages_is_valid():
    data, groups = (b.text for b in blocks(ROOT / "docs/data.md") if b.kind == "yaml")
    assert Data.model_validate(yaml.safe_load(data)["data"]).splits["test"] == "test"
    lines = [yaml.safe_load(line)["groups"] for line in groups.splitlines()]
    assert len([Groups.model_validate(line) for line in lines]) == 3
    (entry,) = (b.text for b in blocks(ROOT / "docs/adding-a-method.md") if b.kind == "yaml")
    assert Method.model_validate(yaml.safe_load(entry)["l1"]).distill == "l1"


def test_the_three_lines_of_the_methods_api():
    """The snippet of use.md, with maps of a loop of one's own."""
    import torch

    (snippet,) = (b.text for b in blocks(ROOT / "docs/use.md") if "fsd.distill" in b.text)
    sides = (8, 4, 2)
    maps = [torch.rand(2, 256, n, n, requires_grad=True) for n in sides]
    names = {
        "student_maps": maps,
        "teacher_maps": [torch.rand(2, 256, n, n) for n in sides],
        "targets": None,
        "image_size": (64, 64),
        "own_loss": maps[0].sum() * 0,
    }
    from fsd.types import Targets

    boxes = torch.tensor([[[4.0, 4, 40, 40]], [[8.0, 8, 20, 30]]])
    names["targets"] = Targets(boxes, torch.zeros(2, 1, dtype=torch.int64))
    exec(snippet, names)
    assert set(names["terms"]) == {f"cwd/kl/p{level}" for level in (3, 4, 5)}
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in maps)


# Typed, in order: what one command leaves, the next ones find.


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A copy of the repository with everything of `tiny` trained, and what the commands ask for."""
    folder = tree.plant(tmp_path_factory.mktemp("copy"))
    (folder / "slurm").symlink_to("workflow/profiles/slurm")
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    # Students of 80 steps: after 16, an export may be refused for the rounding of huge values.
    for before, after in (
        ("active: *smoke", "active: *tiny"),
        (
            "{<<: *tiny_train, epochs: 2, batch_size: 4}",
            "{<<: *tiny_train, epochs: 10, batch_size: 4}",
        ),
        ("{<<: *figures_train, epochs: 10,", "{<<: *figures_train, precision: fp32, epochs: 10,"),
    ):
        assert before in text
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")
    write_inputs(folder)
    code, said = run(folder, "snakemake --cores all")
    assert code == 0, said
    yield folder


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[subprocess.Popen]]:
    """What was started and goes on by itself; stopped at the end."""
    started: list[subprocess.Popen] = []
    yield started
    for server in started:
        os.killpg(server.pid, 15)
        server.wait(30)


def environment(folder: Path) -> dict[str, str]:
    return tree.environment(folder) | {"COLUMNS": "200"}


def run(folder: Path, command: str) -> tuple[int, str]:
    """Exit code and output of a command line, typed in the folder."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def here(command: str, port: int) -> str:
    """The command with the names of this place, behind its page's variables."""
    before = next(variables(page) for page in PAGES if command in commands(page))
    for name, ours in {**STAND_FOR, "5001": str(port)}.items():
        command = command.replace(name, ours)
        before = [line.replace(name, ours) for line in before]
    return "; ".join([*before, command])


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.parametrize("command", TYPED)
def test_typed(place, port, servers, command):
    if command.startswith("mlflow models serve"):
        servers.append(serve(place, here(command, port).split("; ")[-1], port))
        return
    code, said = run(place, here(command, port))
    expected, *patterns = SAYS[command]
    assert code in (expected if isinstance(expected, tuple) else (expected,)), said
    assert "Traceback" not in said
    for pattern in patterns:
        assert re.search(pattern, said), said
    if command in LEAVES:
        LEAVES[command](place)


def serve(folder: Path, command: str, port: int) -> subprocess.Popen:
    """The server, once it answers."""
    with (folder / "server.log").open("w+") as log:
        server = subprocess.Popen(
            shlex.split(command),
            **{"cwd": folder, "env": environment(folder), "stdout": log, "stderr": log},
            start_new_session=True,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                return server
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.5)
    os.killpg(server.pid, 15)
    raise AssertionError("no answer within two minutes")


@pytest.mark.slow
@pytest.mark.docs
def test_the_model_of_the_page_in_python(place):
    """The snippet of use.md, after its `fsd export --format mlflow` above."""
    (snippet,) = (b.text for b in blocks(ROOT / "docs/use.md") if "pyfunc" in b.text)
    load, ask = snippet.strip().splitlines()
    code = f"""
import base64, json, mlflow, pandas
text = base64.b64encode(open("photos/one.png", "rb").read()).decode()
{load}
print(json.dumps({ask}))
"""
    (place / "ask.py").write_text(code, encoding="utf-8")
    code, said = run(place, f"{shlex.quote(sys.executable)} ask.py")
    assert code == 0, said
    (answer,) = json.loads(said.strip().splitlines()[-1])
    assert set(answer) == {"width", "height", "detections"} and answer["width"] == 160
