"""What the entries of params.yaml may hold: one frozen model per block, each checked on its own.

What connects them (look-ups between blocks) and reading the file stand in params.py. No torch here.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

SplitName = Literal["train", "val", "test"]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
# Plans, and so the keys of runs and stores, still say this: what was trained before stays valid.
OLD_NAME_OF_SCENES = "figures"


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


class Groups(Strict):
    """Where an image's group stands: exactly one of the three; without any, the source's own."""

    pattern: str | None = None  # regular expression on the file name; its first group, or the match
    folder: Count | None = None  # so many leading folders of the path within the source
    column: str | None = None  # of a CSV file `groups.csv` in the source, beside a column `image`

    @model_validator(mode="after")
    def _fits(self) -> "Groups":
        if sum(x is not None for x in (self.pattern, self.folder, self.column)) != 1:
            raise ValueError("give exactly one of pattern, folder and column")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(
                    f"pattern {self.pattern!r} is no regular expression: {error}"
                ) from None
        return self


class Data(Strict):
    """Where images come from and how they are stored."""

    # scenes: drawn here (its old name `figures` is read too); voc: XML; coco: JSON; yolo: a text file
    # per image.
    format: Literal["scenes", "voc", "coco", "yolo"]
    classes: list[str] = Field(min_length=1)  # names; a label is a position here
    input_px: Count  # side of the square network input
    source: str | None = None  # folder, tar or zip (all but scenes)
    download: Literal["voc2007"] | None = None  # fetched to `source` where nothing is there
    splits: dict[SplitName, str] = {}  # our split -> its name in the source; or else `ratios`
    ratios: dict[SplitName, Probability] = {}  # our split -> its share of all images, by groups
    groups: Groups | None = None  # which images belong together (a video, a scene)
    class_map: dict[str, str] = {}  # class in the source -> one of `classes`
    images: dict[SplitName, Count] = {}  # how many to draw (scenes)
    seed: int = 0  # of the drawing (scenes) and of the split (ratios)

    @field_validator("format", mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        return "scenes" if value == OLD_NAME_OF_SCENES else value

    @field_serializer("format")
    def _hashed(self, value: str) -> str:
        return OLD_NAME_OF_SCENES if value == "scenes" else value

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if self.input_px % 32:
            raise ValueError(
                f"input_px is {self.input_px}: take a multiple of 32, the largest stride"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names a class twice")
        generated = self.format == "scenes"
        if self.splits and self.ratios:
            raise ValueError("give either splits (the source's own) or ratios, not both")
        if not {"train", "test"} <= set(self.parts):
            raise ValueError(
                f"{'images' if generated else 'splits (or ratios)'} must name train and test"
            )
        if self.ratios and abs(sum(self.ratios.values()) - 1) > 1e-6:
            raise ValueError(f"ratios add up to {sum(self.ratios.values()):g}: make it 1")
        if generated and (self.source or self.splits or self.ratios or self.groups):
            raise ValueError("format scenes is drawn: it takes images, not source or splits")
        if not generated and not self.source:
            raise ValueError(f"format {self.format} needs source: a folder, tar or zip")
        for target in self.class_map.values():
            if target not in self.classes:
                raise ValueError(f"class_map leads to '{target}': {nearest(target, self.classes)}")
        return self

    @property
    def parts(self) -> list[SplitName]:
        """The splits there will be."""
        return list(self.images if self.format == "scenes" else self.splits or self.ratios)


class Augment(Strict):
    """Random changes of a training image; ranges as in the official YOLOX (see data/draw.py)."""

    mosaic: Probability  # four images around a point
    mixup: Probability  # of a mosaic: another image blended in
    degrees: NotNegative  # largest rotation
    translate: NotNegative  # share of the image's side
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2)]  # smallest and largest
    shear: NotNegative  # degrees
    mixup_scale: Annotated[list[Positive], Field(min_length=2, max_length=2)]  # of that image
    # Largest change of hue (of 180), saturation and value (of 255).
    hsv: Annotated[list[NotNegative], Field(min_length=3, max_length=3)]
    flip: Probability  # left to right
    # Range of the mosaic's centre, in sides of one image, of a canvas of two by two.
    mosaic_centre: Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
    max_boxes: Count  # per image; the first ones stay


class Multiscale(Strict):
    """The batch is resized to a random multiple of 32 between low and high times input_px."""

    low: Positive  # share of input_px
    high: Positive  # share of input_px
    every: Count  # iterations with one size


class Recipe(Strict):
    """A dialect of YOLOX: where the official program and the FSD authors' framework differ."""

    source: str  # where the numbers are from
    channels: Literal["bgr", "rgb"]  # order in which the network sees an image
    mean: Annotated[list[float], Field(min_length=3, max_length=3)]  # in the order of channels
    std: Annotated[list[Positive], Field(min_length=3, max_length=3)]  # as mean, of values 0..255
    simota_radius: Positive  # of the square around a box's centre, in strides
    # Which points may be assigned to a box: those in that square, or in the box as well.
    simota_candidates: Literal["centre", "box_or_centre"]
    difficult: bool  # objects marked difficult are training targets
    augment: Augment  # of the training images
    multiscale: Multiscale | None  # null: one input size
    schedule_offset: Literal[0, 1]  # the t-th iteration, counted from 0, takes lr(t + offset)
    voc_plus_one: bool  # VOC overlap counts inclusive pixels
    voc_strict: bool  # a match needs IoU > 0.5, not >=


class Train(Strict):
    """Optimisation of one network."""

    epochs: Count
    batch_size: Count  # of all processes together
    lr: Positive  # peak; for this batch size, it is not rescaled
    momentum: Probability  # Nesterov's
    weight_decay: NotNegative  # of convolution weights alone
    warmup_epochs: NotNegative  # quadratic from 0 to lr
    no_aug_epochs: Annotated[int, Field(ge=0)]  # closing phase: no mosaic or mixup, L1 term on
    min_lr_ratio: Probability  # lr of the closing phase, as a share of lr
    ema_decay: Probability  # times 1 - exp(-update / 2000)
    # auto: bf16 where the processor has it. fp32 is IEEE's float32, on a GPU too: no TF32.
    precision: Literal["auto", "bf16", "fp32"]
    validate_every: Annotated[int, Field(ge=0)]  # epochs between AP on val; 0: never
    # Which epoch's weights are kept; best_test is what some papers do: optimistic, and marked so.
    select: Literal["last", "best_val", "best_test"]

    @model_validator(mode="after")
    def _fits(self) -> "Train":
        if self.warmup_epochs + self.no_aug_epochs > self.epochs:
            raise ValueError("warmup_epochs and no_aug_epochs together exceed epochs")
        if self.select != "last" and not self.validate_every:
            raise ValueError(f"select {self.select} needs validate_every of 1 or more")
        return self


class Init(Strict):
    """Weights to start from."""

    weights: str  # file: official .pth, our weights.pt, or .npz
    partial: bool  # true: leave out what does not fit (another number of classes)


class Network(Strict):
    """A detector and its training. Either a named size or free depth, width and depthwise."""

    # One of the official sizes.
    size: Literal["yolox_nano", "yolox_tiny", "yolox_s", "yolox_m", "yolox_l", "yolox_x"] | None = (
        None
    )
    depth: Positive | None = None  # multiplier of the official depth (YOLOX-L is 1)
    width: Positive | None = None  # multiplier of the official channels (YOLOX-L is 1)
    depthwise: bool | None = None  # 3x3 convolutions per channel, as in YOLOX-Nano
    init: Init | None = None  # null: random weights from the seed
    train: Train  # its optimisation

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

    score_threshold: Probability  # objectness times class probability
    nms_iou: Probability  # a better box of the same class overlapping by more suppresses one
    max_detections: Count  # per image, the best ones


class TeacherGate(Strict):
    """When a teacher is too weak to teach: its AP on test, as a fraction."""

    min_ap: Probability | None = None  # what it had when it was last trained well
    above_baseline: bool = True  # it must not be below a finished baseline student
    # stop: no student is distilled from it; warn: one line is printed; off: nothing is looked at.
    on_failure: Literal["stop", "warn", "off"] = "stop"


class Dataset(Strict):
    """Everything of a run but the method and the seed."""

    data: Data  # the images
    recipe: str  # a name of recipes
    teacher: Network  # trained once, with seed 0
    student: Network  # trained for every method and seed
    evaluate: Evaluate  # from outputs to detections, for both
    paper: str | None = None  # its name in paper/reference.yaml, where the paper has it
    leaks: Literal["refuse", "report"] = "refuse"  # what an image or a group in two splits means
    teacher_gate: TeacherGate = TeacherGate()  # when a teacher is too weak to teach
    zero_ap_epochs: Count | None = None  # validated, and AP still 0 after so many: stop

    @model_validator(mode="after")
    def _fits(self) -> "Dataset":
        for role, network in (("teacher", self.teacher), ("student", self.student)):
            train = network.train
            if (
                train.validate_every
                and train.select != "best_test"
                and "val" not in self.data.parts
            ):
                raise ValueError(f"{role}.train.validate_every is set, but there is no val split")
        return self


class Method(Strict):
    """A distiller (file of fsd/distill/) and its hyper-parameters, which its class defines."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    distill: str  # the file in fsd/distill/
    # Controls: a teacher with random weights, or one that sees another image of the batch.
    teacher: Literal["trained", "random", "shuffled"] = "trained"
    epochs_factor: Positive = 1.0  # a student that trains longer (extra compute for the baseline)


class Verdict(Strict):
    """The rule, fixed before the runs, by which a paper's difference counts as reproduced or not."""

    confidence: Probability  # of the interval of our mean difference to the baseline
    margin: NotNegative  # fraction of AP: a difference this close to 0 is none


class Compute(Strict):
    """How a training is computed, not what: at most the rounding changes, as on another device.

    So it is no part of a run or its key; each segment of the provenance records it.
    """

    # The teacher's forward pass: off: operation by operation; kernels: fused by torch.compile, one
    # graph per input size; graphs: those kernels replayed as one CUDA graph per input size.
    compile_teacher: Literal["off", "kernels", "graphs"] = "off"
    trainings_per_gpu: Count = 1  # how many share a GPU before it counts as taken
    # On a GPU, only those of cuDNN's algorithms that give the same bits at every repetition.
    deterministic: bool = False


class Experiment(Strict):
    """A named set of runs: all data sets x methods x seeds, and the teachers they need."""

    name: Name  # its own key, again: dvc.yaml cannot look that up
    datasets: list[str] = Field(min_length=1)  # names of datasets
    methods: list[str] = Field(min_length=1)  # names of methods
    # A seed fixes initialisation, order and augmentation, for all methods alike.
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    # A method that the others are compared with besides the baseline (an ablation's full form).
    reference: str | None = None
    # What a method's line would mean, in a sentence each, written before the runs; below the table.
    meaning: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits(self) -> "Experiment":
        for key in ("datasets", "methods", "seeds"):
            values = getattr(self, key)
            twice = {v for v in values if values.count(v) > 1}
            if twice:
                raise ValueError(f"{key} names {min(twice, key=str)!r} twice")
        named = {"meaning": list(self.meaning), "reference": [self.reference]}
        for key, methods in named.items():
            for method in methods:
                if method is not None and method not in self.methods:
                    raise ValueError(
                        f"{key} '{method}' is not among the methods: {nearest(method, self.methods)}"
                    )
        return self
