"""The recipe: everything that decides a training run, validated where it is built and frozen after.

The defaults are the authors' ImageNet recipe for CMT-S where they published one (lr per 512 images, RandAugment, mixup
and cutmix, EMA); a recipe file states only what it changes. Unknown keys are errors.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]  # of what is dropped: all of it is never meant
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


OptionValue = bool | int | float | str | None | tuple[bool | int | float | str, ...]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys, and booleans where a number is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: Any) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("a value that is not true/false")
        return value


class ModelSection(Section):
    """Which network, and where its weights come from."""

    name: str = "cmt_s"
    weights: str | None = None
    """A file, or 'pretrained' for the authors' release; None starts from random weights."""
    use_ema: bool = True
    """Prefer the moving average where the weights file holds one."""
    img_size: Annotated[int, Field(ge=1)] | tuple[Count, Count] | None = None
    """Pixels, or (height, width); None is the model's own size."""
    in_chans: Count = 3
    rel_pos: Literal["stage", "block", "none"] | None = None
    options: dict[str, OptionValue] = {}
    """Further arguments of the model's constructor, such as {lpu: false}; they are kept with the trained model."""
    drop_rate: Rate | None = None
    """Dropout in front of the classifier; None is the model's own."""
    drop_path_rate: Rate = 0.1
    attn_drop_rate: Rate = 0.0
    proj_drop_rate: Rate = 0.0
    grad_checkpointing: bool = False
    freeze: Literal["none", "backbone"] = "none"
    """'backbone' trains the classifier alone (a linear probe): nothing else changes, BN statistics included."""

    @model_validator(mode="after")
    def _options_are_not_settings(self) -> Self:
        settings = sorted(self.options.keys() & {*type(self).model_fields, "num_classes", "device", "dtype"})
        if settings:
            raise ValueError(f"options.{settings[0]}: this has a setting of its own, or follows from the data")
        return self


class DataSection(Section):
    """How the data is split, read and held."""

    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of each class (about) held out where the data has no validation part; 0 holds nothing out."""
    split_seed: CountOrZero = 0
    workers: CountOrZero | None = None
    """Loader processes; None is one less than the cores, 8 at most, and none on a single core."""
    cache: bool = False
    """Keep decoded images in memory."""
    shrink: Annotated[float, Field(ge=1.0)] | None = None
    """Shrink training photos as they are read, where a random crop follows, to a shorter side of this many times the
    input's: JPEG files are decoded faster then, and the cache takes less memory. None leaves them whole."""
    max_pixels: Annotated[int, Field(ge=1, le=2_000_000_000)] = 89_478_485
    """Larger images are left out. There is always a limit: a file of a few bytes can claim to be any size."""
    max_bytes: Count = 100_000_000
    image_column: str | None = None
    """Column of the image, or of its path, in a table (CSV, Parquet, Hugging Face); None finds it by its usual name."""
    label_column: str | None = None
    multi_label: bool = False
    """A photo may belong to several classes, or to none; its label is then a list, or text joined by '|'."""
    class_balance: Literal["none", "loss", "sampling"] = "none"
    """For skewed data: weigh rare classes more in the loss, or show their photos more often."""
    repeated_aug: Count = 1
    """Each photo of an epoch comes this many times, changed differently; the epoch keeps its length, rounded down to a
    multiple of 256 (Hoffer et al., 'Augment your batch'; as in DeiT)."""
    shard_window: Count = 8
    """Shards that are open at a time: order within them is random, and so is the order of shards."""


class PreprocessSection(Section):
    """How an image becomes the network's input; None is what the model was trained with."""

    crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None


class AugmentSection(Section):
    """Random augmentation of training images and labels."""

    random_resized_crop: bool = True
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    crop_padding: CountOrZero = 0
    """Pixels of black border to crop from at random; used when random_resized_crop is off."""
    hflip: Probability = 0.5
    vflip: Probability = 0.0
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: NotNegative | None = None
    """timm's rule: it does nothing while auto_augment is on, so both together are refused."""
    random_erasing: Probability = 0.25
    mixup: NotNegative = 0.8
    cutmix: NotNegative = 1.0
    mix_prob: Probability = 1.0
    mix_switch_prob: Probability = 0.5
    mix_off_epoch: CountOrZero = 0
    """From this epoch on nothing is mixed; 0 is never off."""
    label_smoothing: Rate = 0.1

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{name}: got ({low}, {high}), expected (smaller, larger)")
        if self.scale[1] > 1:
            raise ValueError(f"scale: got {self.scale}, expected shares of the image's area, at most 1")
        if self.random_resized_crop and self.crop_padding:
            raise ValueError("crop_padding: it needs random_resized_crop=false, or nothing would read it")
        if self.auto_augment and self.color_jitter:
            raise ValueError("color_jitter: it needs auto_augment=null, or nothing would read it")
        if self.auto_augment and not self.auto_augment.startswith(("rand", "augmix", "original", "v0", "3a")):
            raise ValueError(f"auto_augment: got {self.auto_augment!r}, expected a timm string like 'rand-m9-mstd0.5'")
        return self


class SceneSection(Section):
    """Detection and segmentation: how large images are, and how they are changed at random to train on.

    What only classifiers read, such as the sections augment, loss and distill, is refused there (other_tasks.py).
    """

    size: tuple[Count, Count] = (512, 512)
    """(height, width) of the window that large-scale jitter cuts out of the enlarged or shrunk image."""
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    """Its least and greatest factor; 1 is an image that just fits into the window."""
    short_sides: tuple[Count, ...] = ()
    """Lengths of the shorter side, one of which is drawn (multi-scale); given, nothing is jittered or cropped."""
    longest: Count | None = None
    """Pixels that multi-scale allows the longer side."""
    hflip: Probability = 0.5
    photometric: Probability = 0.5
    eval_short_side: Count | None = None
    """Pixels of the shorter side for evaluation and prediction; None leaves images as they are."""
    eval_longest: Count | None = None
    """Pixels that the longer side has then at most."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: got {self.scale}, expected (smaller, larger)")
        if self.longest is not None and not (self.short_sides and max(self.short_sides) <= self.longest):
            raise ValueError("longest: it needs short_sides, and is at least the longest of them")
        return self


class LossSection(Section):
    """The loss."""

    name: Literal["cross_entropy", "bce", "asymmetric"] = "cross_entropy"
    """For data with several labels a photo: bce or asymmetric (Ridnik et al., ICCV 2021)."""
    gamma_negative: NotNegative = 4.0
    gamma_positive: NotNegative = 0.0
    probability_shift: Rate = 0.05
    """Asymmetric loss: negatives with a probability below this count nothing."""


class DistillSection(Section):
    """Learning from a larger network as well as from the labels."""

    teacher: str | None = None
    """A model of timm, or the run folder of a trained one; None for no teacher."""
    weights: str | None = "pretrained"
    """The weights of a teacher named by its model: a file, or 'pretrained'. A run folder has its own."""
    kind: Literal["soft", "hard", "feature"] = "soft"
    """Match the teacher's probabilities, its decision, or the map before its classifier."""
    alpha: Probability = 0.5
    """Share of the teacher's part in the loss."""
    temperature: Positive = 3.0
    """Soft distillation: both logits are divided by it."""


class OptimSection(Section):
    """The optimizer, by timm's name. No weight decay on biases and one-dimensional parameters."""

    name: str = "adamw"
    lr: Positive = 5e-4
    lr_base_batch: Count | None = 512
    """lr is multiplied by effective batch / this; None takes lr as it is."""
    weight_decay: NotNegative = 0.05
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: Positive = 1e-8
    clip_grad_norm: Positive | None = None
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Each layer's lr is that of the layer above it times this; the classifier's is the full one."""
    head_warmup_epochs: CountOrZero = 0
    """Epochs in which the classifier alone learns, so that its first random gradients don't spoil the rest."""


class ScheduleSection(Section):
    """Warm-up, cosine, cool-down. Warm-up and final rates are used unchanged, never scaled by the batch."""

    epochs: Count = 300
    warmup_epochs: NotNegative = 20
    warmup_lr: NotNegative = 1e-7
    min_lr: NotNegative = 1e-5
    cooldown_epochs: CountOrZero = 0
    step: Literal["step", "epoch"] = "step"
    late: bool = False
    """With step 'epoch': epoch e runs at the rate meant for e - 1, as in the released code, whose scheduler steps
    after the epoch: epochs 0 and 1 both run at warmup_lr."""

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run, cool-down included."""
        return self.epochs + self.cooldown_epochs

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: got {self.warmup_epochs:g}, expected fewer than epochs ({self.epochs})")
        if self.late and self.step != "epoch":
            raise ValueError("late: it needs step=epoch, or nothing would read it")
        return self


class EmaSection(Section):
    """The moving average of the weights, BN statistics included."""

    enabled: bool = True
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99996
    warmup: bool = True
    """Let the decay grow from 0 to its value, so that the first weights are soon forgotten."""
    on_resume: Literal["restore", "restart"] = "restore"
    """'restart' begins a new average from the resumed weights, as the released code does."""


class TrainSection(Section):
    """How the run is carried out, on this machine or many."""

    batch_size: Count | Literal["auto"] = 128
    """Photos at a time in each process."""
    accumulate: Count = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: a whole copy of the network in each, or its parts (FSDP2) for networks too large."""
    sync_bn: bool = False
    """Batch norm over the photos of all processes."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Count | None = None
    eval_batch_size: Count | None = None
    early_stop_patience: Count | None = None
    eval_every: Count = 1
    deterministic: bool = True
    checkpoint_minutes: Positive | None = 10.0
    """Save in mid-epoch this often; the end of an epoch always saves."""
    checkpoint_steps: Count | None = None
    """The same, counted in optimiser steps."""
    divergence_factor: Annotated[float, Field(gt=1.0)] | None = 4.0
    """Stop where the loss, smoothed over 50 steps, grows to this many times its lowest; None never."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    max_steps: Count | None = None
    max_minutes: Positive | None = None
    """Minutes within which the whole run ends, evaluation and report included: where its epochs would take longer here,
    the schedule is shortened to fit, not cut off. A run that was shortened is not repeated step for step: its length
    depends on the machine."""


class Recipe(Section):
    """A whole run: what is trained, on what, how, and with which seed."""

    name: str = "custom"
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    preprocess: PreprocessSection = PreprocessSection()
    augment: AugmentSection = AugmentSection()
    scene: SceneSection | None = None
    """None for classification."""
    loss: LossSection = LossSection()
    distill: DistillSection = DistillSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    ema: EmaSection = EmaSection()
    train: TrainSection = TrainSection()

    @model_validator(mode="before")
    @classmethod
    def _loss_of_several_labels(cls, values: Any) -> Any:
        """With several labels per image the loss is bce, unless one is named."""
        data, loss = (values.get("data"), values.get("loss", {})) if isinstance(values, dict) else (None, None)
        if isinstance(data, dict) and data.get("multi_label") is True and isinstance(loss, dict) and "name" not in loss:
            return {**values, "loss": {**loss, "name": "bce"}}
        return values

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for key in ("mean", "std"):
            values = getattr(self.preprocess, key)
            if values is not None and len(values) != self.model.in_chans:
                raise ValueError(
                    f"preprocess.{key}: got {len(values)} values, expected one per channel ({self.model.in_chans})"
                )
        if self.data.multi_label and self.loss.name == "cross_entropy":
            raise ValueError("loss.name: cross_entropy knows one label a photo; with data.multi_label=true set it to "
                             "bce or asymmetric")  # fmt: skip
        if self.data.multi_label and self.data.class_balance == "sampling":
            raise ValueError("data.class_balance: sampling by class needs one label a photo; use loss")
        if self.loss.name == "asymmetric" and not self.data.multi_label:
            raise ValueError("loss.name: asymmetric is for several labels a photo; set data.multi_label=true")
        if self.model.freeze == "backbone" and self.optim.layer_decay is not None:
            raise ValueError("optim.layer_decay: with model.freeze=backbone the classifier alone learns; leave it out")
        if self.model.freeze == "backbone" and self.optim.head_warmup_epochs:
            raise ValueError(
                "optim.head_warmup_epochs: with model.freeze=backbone the classifier always learns alone; set it to 0"
            )
        if self.distill.teacher is None:
            for key, value in self.distill:
                if value != DistillSection.model_fields[key].default:
                    raise ValueError(f"distill.{key}: there is no teacher; set distill.teacher or leave it out")
        return self
