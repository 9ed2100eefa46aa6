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
    drop_rate: Rate | None = None
    """Dropout in front of the classifier; None is the model's own."""
    drop_path_rate: Rate = 0.1
    attn_drop_rate: Rate = 0.0
    proj_drop_rate: Rate = 0.0
    grad_checkpointing: bool = False


class DataSection(Section):
    """How the data is split, read and held."""

    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of each class held out where the data has no validation part; 0 holds nothing out."""
    split_seed: CountOrZero = 0
    workers: CountOrZero | None = None
    """Loader processes; None is one less than the cores, 8 at most, and none on a single core."""
    cache: bool = False
    """Keep decoded images in memory."""
    max_pixels: Count = 89_478_485
    max_bytes: Count = 100_000_000


class PreprocessSection(Section):
    """How an image becomes the network's input; None is what the model was trained with."""

    crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None


class AugmentSection(Section):
    """Random changes to training images and labels."""

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


class OptimSection(Section):
    """The optimizer, by timm's name."""

    name: str = "adamw"
    lr: Positive = 5e-4
    lr_base_batch: Count | None = 512
    """lr is multiplied by effective batch / this; None takes lr as it is."""
    weight_decay: NotNegative = 0.05
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: Positive = 1e-8
    clip_grad_norm: Positive | None = None


class ScheduleSection(Section):
    """Warm-up, cosine, cool-down. Warm-up and final rates are taken as they are, never multiplied by the batch."""

    epochs: Count = 300
    warmup_epochs: NotNegative = 20
    warmup_lr: NotNegative = 1e-7
    min_lr: NotNegative = 1e-5
    cooldown_epochs: CountOrZero = 0
    step: Literal["step", "epoch"] = "step"

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: got {self.warmup_epochs:g}, expected fewer than epochs ({self.epochs})")
        return self


class EmaSection(Section):
    """The moving average of the weights, BN statistics included."""

    enabled: bool = True
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99996
    warmup: bool = True


class TrainSection(Section):
    """How the run is carried out on this machine."""

    batch_size: Count | Literal["auto"] = 128
    accumulate: Count = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Count | None = None
    eval_batch_size: Count | None = None
    early_stop_patience: Count | None = None
    eval_every: Count = 1
    deterministic: bool = True
    max_steps: Count | None = None
    max_minutes: Positive | None = None


class Recipe(Section):
    """A whole run: what is trained, on what, how, and with which seed."""

    name: str = "custom"
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    preprocess: PreprocessSection = PreprocessSection()
    augment: AugmentSection = AugmentSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    ema: EmaSection = EmaSection()
    train: TrainSection = TrainSection()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for key in ("mean", "std"):
            values = getattr(self.preprocess, key)
            if values is not None and len(values) != self.model.in_chans:
                raise ValueError(
                    f"preprocess.{key}: got {len(values)} values, expected one per channel ({self.model.in_chans})"
                )
        return self
