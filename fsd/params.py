"""params.yaml, typed and checked. What it expands to stands in runs.py.

Read by the command line, the Snakefile and the tests; imports neither torch nor the methods, so that
a Snakefile parses fast. `distill.check` completes the check where torch is at hand.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

TEACHER = "teacher"  # reserved method: the teacher's own run, shared by all students of a data set

SplitName = Literal["train", "val", "test"]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class ParamsError(ValueError):
    """params.yaml asks for something that does not exist or does not fit; the text says what."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """'; did you mean X?' or the list of valid names, for the end of an error's sentence."""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name), valid, n=1)
    return f"did you mean '{close[0]}'?" if close else f"valid names: {', '.join(valid)}"


class Strict(BaseModel):
    """Frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and cls.model_config.get("extra") == "forbid":
            for key in value:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}': {nearest(key, cls.model_fields)}")
        return value


class Data(Strict):
    """Where images come from and how they are stored."""

    format: Literal["figures", "voc", "coco"]
    classes: list[str] = Field(min_length=1)
    input_px: Count  # side of the square network input
    source: str | None = None  # folder, tar or zip (voc, coco)
    splits: dict[SplitName, str] = {}  # our split -> its name in the source (voc, coco)
    class_map: dict[str, str] = {}  # class in the source -> one of `classes`
    images: dict[SplitName, Count] = {}  # how many to draw (figures)
    seed: int = 0  # of the drawing (figures)

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if self.input_px % 32:
            raise ValueError(
                f"input_px is {self.input_px}: take a multiple of 32, the largest stride"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names a class twice")
        generated = self.format == "figures"
        has = set(self.images if generated else self.splits)
        if not {"train", "test"} <= has:
            raise ValueError(f"{'images' if generated else 'splits'} must name train and test")
        if generated and (self.source or self.splits):
            raise ValueError("format figures is drawn: it takes images, not source or splits")
        if not generated and not self.source:
            raise ValueError(f"format {self.format} needs source: a folder, tar or zip")
        for target in self.class_map.values():
            if target not in self.classes:
                raise ValueError(f"class_map leads to '{target}': {nearest(target, self.classes)}")
        return self


class Augment(Strict):
    """Random changes of a training image; ranges as in the official YOLOX (see data/draw.py)."""

    mosaic: Probability
    mixup: Probability
    degrees: NotNegative
    translate: NotNegative  # share of the image's side
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    shear: NotNegative  # degrees
    mixup_scale: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    hsv: Annotated[list[NotNegative], Field(min_length=3, max_length=3)]
    flip: Probability
    mosaic_centre: Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
    max_boxes: Count


class Multiscale(Strict):
    """The batch is resized to a random multiple of 32 between low and high times input_px."""

    low: Positive
    high: Positive
    every: Count  # iterations with one size


class Recipe(Strict):
    """A dialect of YOLOX: where the official program and the FSD authors' framework differ."""

    source: str
    channels: Literal["bgr", "rgb"]
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]  # in the order of channels
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    simota_radius: Positive
    simota_candidates: Literal["centre", "box_or_centre"]
    augment: Augment
    multiscale: Multiscale | None
    schedule_offset: Literal[0, 1]  # the t-th iteration, counted from 0, takes lr(t + offset)
    voc_plus_one: bool  # VOC overlap counts inclusive pixels
    voc_strict: bool  # a match needs IoU > 0.5, not >=


class Train(Strict):
    """Optimisation of one network."""

    epochs: Count
    batch_size: Count  # global
    lr: Positive
    momentum: Probability
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    no_aug_epochs: Annotated[int, Field(ge=0)]  # closing phase: no mosaic or mixup, L1 term on
    min_lr_ratio: Probability
    ema_decay: Probability
    precision: Literal["auto", "bf16", "fp32"]  # auto: bf16 where the processor has it
    validate_every: Annotated[int, Field(ge=0)]  # epochs between AP on val; 0: never
    select: Literal["last", "best_val"]  # which epoch's weights are kept

    @model_validator(mode="after")
    def _fits(self) -> "Train":
        if self.warmup_epochs + self.no_aug_epochs > self.epochs:
            raise ValueError("warmup_epochs and no_aug_epochs together exceed epochs")
        if self.select == "best_val" and not self.validate_every:
            raise ValueError("select best_val needs validate_every of 1 or more")
        return self


class Init(Strict):
    """Weights to start from."""

    weights: str  # file: official .pth, our weights.pt, or .npz
    partial: bool  # leave out what does not fit (another number of classes)


class Network(Strict):
    """A detector and its training. Either a named size or free depth, width and depthwise."""

    size: Literal["yolox_nano", "yolox_tiny", "yolox_s", "yolox_m", "yolox_l", "yolox_x"] | None = (
        None
    )
    depth: Positive | None = None
    width: Positive | None = None
    depthwise: bool | None = None
    init: Init | None = None
    train: Train

    @model_validator(mode="after")
    def _fits(self) -> "Network":
        free = (self.depth, self.width, self.depthwise)
        if self.size and any(x is not None for x in free):
            raise ValueError("give either size or depth, width and depthwise, not both")
        if not self.size and any(x is None for x in free):
            raise ValueError("give size, or all of depth, width and depthwise")
        return self


class Evaluate(Strict):
    """From network outputs to detections."""

    score_threshold: Probability
    nms_iou: Probability
    max_detections: Count


class Dataset(Strict):
    """Everything of a run but the method and the seed."""

    data: Data
    recipe: str
    teacher: Network
    student: Network
    evaluate: Evaluate
    paper: str | None = None  # its name in paper/reference.yaml, where the paper has it

    @model_validator(mode="after")
    def _fits(self) -> "Dataset":
        splits = self.data.images or self.data.splits
        for role, network in (("teacher", self.teacher), ("student", self.student)):
            if network.train.validate_every and "val" not in splits:
                raise ValueError(f"{role}.train.validate_every is set, but there is no val split")
        return self


class Method(Strict):
    """A distiller (file of fsd/distill/) and its hyper-parameters, which its class defines."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    distill: str


class Experiment(Strict):
    """A named set of runs: all data sets x methods x seeds, and the teachers they need."""

    name: Name
    datasets: list[str] = Field(min_length=1)
    methods: list[str] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> "Experiment":
        for key in ("datasets", "methods", "seeds"):
            values = getattr(self, key)
            twice = {v for v in values if values.count(v) > 1}
            if twice:
                raise ValueError(f"{key} names {min(twice, key=str)!r} twice")
        return self


class Params(Strict):
    """The whole of params.yaml."""

    experiments: dict[Name, Experiment]
    active: Experiment
    recipes: dict[Name, Recipe]
    datasets: dict[Name, Dataset]
    methods: dict[Name, Method]
    templates: dict[str, Any] = {}  # anchors for YAML's own sharing; nothing reads it

    @model_validator(mode="after")
    def _look_ups(self) -> "Params":
        files = distillers()
        for name, method in self.methods.items():
            if name == TEACHER:
                raise ValueError("methods: 'teacher' is reserved for the teacher's own run")
            if method.distill not in files:
                raise ValueError(
                    f"methods.{name}.distill: there is no distiller '{method.distill}': "
                    f"{nearest(method.distill, files)}"
                )
        for name, dataset in self.datasets.items():
            if dataset.recipe not in self.recipes:
                raise ValueError(
                    f"datasets.{name}.recipe: there is no recipe '{dataset.recipe}': "
                    f"{nearest(dataset.recipe, self.recipes)}"
                )
        for name, experiment in [*self.experiments.items(), ("active", self.active)]:
            where = "active" if name == "active" else f"experiments.{name}"
            if name != "active" and experiment.name != name:
                raise ValueError(f"{where}.name is '{experiment.name}': write '{name}'")
            for key, known in (("datasets", self.datasets), ("methods", self.methods)):
                for value in getattr(experiment, key):
                    if value not in known:
                        raise ValueError(
                            f"{where}.{key}: '{value}' is not in {key}: {nearest(value, known)}"
                        )
        if self.experiments.get(self.active.name) != self.active:
            raise ValueError(
                "active: must be one of the experiments, as in 'active: *smoke': "
                f"{nearest(self.active.name, self.experiments)}"
            )
        return self


def distillers() -> list[str]:
    """Names of the files of fsd/distill/ that hold a Distiller, found without importing them."""
    folder = Path(__file__).parent / "distill"
    holds = re.compile(r"^class \w+\(Distiller\):", re.MULTILINE)
    return sorted(
        p.stem
        for p in folder.glob("*.py")
        if p.stem not in ("__init__", "base") and holds.search(p.read_text(encoding="utf-8"))
    )


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-5 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise ParamsError(f"key '{key}' is given twice (second time in line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # A merged mapping brings keys that the node overrides: legal, so they are looked for first.
        super().flatten_mapping(node)
        keys: dict[str, int] = {}
        for position, (key_node, _) in enumerate(node.value):
            keys[key_node.value] = position
        node.value = [pair for i, pair in enumerate(node.value) if keys[pair[0].value] == i]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file. ParamsError with one sentence where it is not right."""
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ParamsError(
            f"{path} is not here: run this from the repository's root folder"
        ) from None
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ParamsError(f"{path}: not valid YAML{where}: {problem}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{path}: should hold a mapping with experiments, datasets, methods, ...")
    return parse(raw, str(path))


def parse(raw: dict, name: str = "params.yaml") -> Params:
    """Check an already loaded mapping (the Snakefile's `config`, say)."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(f"{name}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "missing":
        text = "is missing"
        return f"{where} {text}"
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        return f"{where}: {text}" if where else text
    text = first["msg"].removeprefix("Input ")
    return f"{where} {text[0].lower() + text[1:]}, not {first['input']!r}"
