"""The compiled teacher: the eager one's numbers, one graph per input size, no compiler no harm."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from micro import micro, prepare, run
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

from fsd.experiment.params import TEACHER
from fsd.experiment.schema import Compute
from fsd.models.darknet import CSPLayer, Focus
from fsd.models.yolox import YOLOX, for_inference, up_to
from fsd.train import checkpoint, compiled, stage


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """No graph of another test, and torch's own limit of graphs."""
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.config.recompile_limit = before
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch) -> CompileCounterWithBackend:
    """Counts graphs (frame_count), which compute with torch's own operations: no compiler needed."""
    counter = CompileCounterWithBackend("aot_eager")
    for how in compiled.OPTIONS:
        monkeypatch.setitem(compiled.OPTIONS, how, {"backend": counter})
    return counter


def small() -> nn.Module:
    """Blocks of the detector, where one would take long to compile."""
    torch.manual_seed(0)
    return nn.Sequential(Focus(3, 8, 3), CSPLayer(8, 8, 1)).eval().requires_grad_(False)


def detector() -> YOLOX:
    torch.manual_seed(0)
    return for_inference(YOLOX(2, depth=0.33, width=0.125))


def images(count: int, side: int) -> Tensor:
    draw = torch.Generator().manual_seed(side)
    return torch.rand(count, 3, side, side, generator=draw) * 255


def silent(line: str) -> None:
    raise AssertionError(f"nothing should be said, but: {line}")


@pytest.mark.parametrize("site", ["stems", "head"])
def test_the_numbers_are_the_same_and_there_is_one_graph_per_size(graphs, site):
    network = up_to(detector(), site)
    teacher = compiled.compiled(network, "kernels", silent)
    for side in (32, 64, 32, 64):
        pixels = images(2, side)
        with torch.no_grad():
            expected = network(pixels)
        found = teacher(pixels)
        assert type(found) is type(expected)
        for ours, theirs in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            assert torch.equal(ours, theirs) and not ours.requires_grad
    assert graphs.frame_count == 2
    assert compiled.used(teacher) == "kernels"


def test_another_number_of_images_makes_no_graph(graphs):
    network = small()
    teacher = compiled.compiled(network, "graphs", silent)
    teacher(images(3, 32))
    rest = images(2, 32)
    with torch.no_grad():
        assert torch.equal(teacher(rest), network(rest))
    assert graphs.frame_count == 1


def test_all_sizes_of_multi_scale_training_have_their_graph(graphs):
    teacher = compiled.compiled(nn.Conv2d(3, 2, 3).requires_grad_(False), "kernels", silent)
    sides = range(480, 801, 32)  # of 640 px: more than the eight graphs that torch makes by itself
    for _ in range(2):
        for side in sides:
            teacher(images(1, side))
    assert graphs.frame_count == len(sides) == 11


def failing(graph: torch.fx.GraphModule, inputs: list[Tensor]):
    raise RuntimeError("no compiler here\nand much more of it")


def test_without_a_compiler_one_line_is_said_and_the_teacher_computes_as_it_is(monkeypatch):
    monkeypatch.setitem(compiled.OPTIONS, "kernels", {"backend": failing})
    network, said = small(), []
    teacher = compiled.compiled(network, "kernels", said.append)
    for side in (32, 64):
        with torch.no_grad():
            assert torch.equal(teacher(images(2, side)), network(images(2, side)))
    assert said == [
        "the teacher is not compiled, it computes as it is: RuntimeError: no compiler here"
    ]
    assert compiled.used(teacher) == "off"


def test_an_error_of_the_network_itself_is_no_reason_to_go_on():
    class Full(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    teacher = compiled.compiled(Full(), "kernels", silent)

    def out_of_memory(pixels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    teacher._call = out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        teacher(images(1, 32))


def test_off_and_no_teacher_are_left_alone():
    network = detector()
    assert compiled.compiled(network, "off", silent) is network
    assert compiled.compiled(None, "kernels", silent) is None
    assert compiled.used(network) == compiled.used(None) == "off"


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("how", ["kernels", "graphs"])
def test_compiled_kernels_compute_the_same_up_to_rounding(how):
    network = small()
    teacher = compiled.compiled(network, how, silent)
    pixels = images(2, 32)
    with torch.no_grad():
        expected = network(pixels)
    torch.testing.assert_close(teacher(pixels), expected, rtol=1e-4, atol=1e-4)
    assert compiled.used(teacher) == how


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A prepared folder with a trained teacher."""
    folder = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(stage.tracking, "_off", ["tests"])
        prepare(micro())
        stage.fit(micro(), run(TEACHER), "test")
    return folder


@pytest.fixture
def place(taught, monkeypatch) -> Path:
    """That folder as the working directory."""
    monkeypatch.chdir(taught)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return taught


def trained(method: str, how: str) -> tuple[str, dict[str, Tensor], dict]:
    """Key, weights and last segment of a run trained anew."""
    for path in [run(method).folder, *_stores(method)]:
        shutil.rmtree(path, ignore_errors=True)
    stage.fit(micro(compute={"compile_teacher": how}), run(method), "test")
    made = json.loads((run(method).folder / "provenance.json").read_text())
    weights = checkpoint.load(run(method).folder / "weights.pt")["model"]
    return made["key"], weights, made["segments"][-1]["compute"]


def _stores(method: str) -> list[Path]:
    found = Path("results/store").glob("*/provenance.json")
    return [p.parent for p in found if json.loads(p.read_text())["plan"]["run"]["method"] == method]


class OwnMemory:
    """A backend that computes as the network does, but each call writes over the last one's outputs,
    as a CUDA graph does."""

    def __init__(self):
        self.graphs, self.calls = 0, 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]):
        self.graphs += 1
        memory: list[Tensor] = []

        def call(*arguments):
            self.calls += 1
            found = graph(*arguments)
            if not memory:
                memory.extend(x.clone() for x in found)
            for own, x in zip(memory, found, strict=True):
                own.copy_(x)
            return list(memory)

        return call


# fsd looks at the maps, crosskd goes through the teacher's head as well.
@pytest.mark.parametrize("method", ["fsd", "crosskd"])
def test_a_whole_run_with_a_compiled_teacher_is_the_same_run(place, monkeypatch, method):
    backend, steps = OwnMemory(), []
    monkeypatch.setitem(compiled.OPTIONS, "graphs", {"backend": backend})
    monkeypatch.setattr(
        torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(backend.calls)
    )
    key, weights, segment = trained(method, "off")
    assert segment == Compute().model_dump()
    assert backend.graphs == 0 and not steps
    again, compiled_weights, segment = trained(method, "graphs")
    assert segment["compile_teacher"] == "graphs"
    assert backend.graphs == 1
    assert steps == list(range(backend.calls))  # announced before each step's call
    assert again == key
    for name, value in weights.items():
        assert torch.equal(value, compiled_weights[name]), name


def test_a_run_records_that_its_teacher_was_not_compiled_after_all(place, monkeypatch, capsys):
    monkeypatch.setitem(compiled.OPTIONS, "kernels", {"backend": failing})
    _, _, segment = trained("mimic", "kernels")
    assert segment["compile_teacher"] == "off"
    assert capsys.readouterr().out.count("not compiled") == 1


def test_a_run_without_a_teacher_records_none(place):
    _, _, segment = trained("baseline", "graphs")
    assert segment["compile_teacher"] == "off"
