"""A model: which pipeline, from where, and how it is customarily called. Data; reads no file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from diffopt.schema.record import Descriptive, Frozen

Dtype = Literal["float32", "float16", "bfloat16"]
Task = Literal["txt2img", "img2img", "inpaint", "controlnet", "edit", "upscale", "txt2video", "img2video"]
TASKS: tuple[Task, ...] = get_args(Task)
Positive = Annotated[int, Field(ge=1)]


class Pipelines(Frozen):
    """diffusers' pipeline class for each task that the model can do; ``None``, or left out, where it cannot."""

    txt2img: str | None = None
    img2img: str | None = None  # starts from a picture with some noise on it
    inpaint: str | None = None  # draws inside a mask
    controlnet: str | None = None  # follows a control map, such as edges
    edit: str | None = None  # changes a picture as the prompt says
    upscale: str | None = None  # a larger picture from a small one
    txt2video: str | None = None
    img2video: str | None = None  # a video that begins with a picture

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the model can do."""
        return tuple(task for task in TASKS if getattr(self, task) is not None)


class Limits(Frozen):
    """What is known to go wrong with this model, as data."""

    fp16_vae_overflows: bool  # the VAE decodes to black in float16; it then runs in float32
    fp16_text_overflows: bool = False  # text encoders overflow in float16; they then run in bfloat16
    fp16_overflows: bool = False  # the denoiser overflows in float16: refused
    vae_float32: bool = False  # the VAE loses detail below float32: it runs in float32 whatever the others do


class ControlNet(Frozen):
    """The ControlNet beside the denoiser: where it comes from when the model comes from the hub."""

    class_name: str
    id: str | None  # hub id; None: it lies in the model's own folder
    revision: str | None
    variant: str | None


class Embeddings(Frozen):
    """Random prompt embeddings in place of a text encoder, drawn with the workload's seed."""

    tokens: Positive
    width: Positive


class Call(Frozen):
    """Arguments that this model's pipelines customarily take, by diffusers' own names; ``None``: not given."""

    max_sequence_length: Positive | None = None  # tokens of the prompt that are encoded
    use_resolution_binning: bool | None = None  # false: the size asked for, and not the nearest that was trained
    clean_caption: bool | None = None  # true needs beautifulsoup4 and ftfy
    noise_level: Annotated[int, Field(ge=0)] | None = None  # noise put on the picture that is scaled up
    frame_rate: Positive | None = None  # frames per second that the model is told
    text_encoder_out_layers: tuple[int, ...] | None = None  # hidden states that are concatenated


class SizeLimit(Frozen):
    """The pictures, in pixels, that the denoiser's table of positions has places for."""

    height: Positive
    width: Positive
    exact: bool  # smaller ones have none either


class Parameters(Frozen):
    """Number of parameters by part; ``None`` where not known."""

    denoiser: int | None  # the ControlNet beside it too
    text_encoders: int | None
    vae: int | None

    @property
    def total(self) -> int | None:
        """Of all parts that are known; ``None`` when the denoiser's is not."""
        return None if self.denoiser is None else self.denoiser + (self.text_encoders or 0) + (self.vae or 0)


class Activations(Frozen):
    """Values alive at once beside the weights, for one picture of the size given here; ``None`` where not known.

    Counted by running the parts on the meta device; the attention never keeps its score matrix. What they were counted
    with stands here too: an option that extends another may change the model's customary size and guidance.
    """

    denoise: int | None = None  # in one call of the denoiser, with the batch doubled where guidance does so
    decode: int | None = None  # in the VAE's decoder
    height: Positive | None = None  # counted with this size in pixels; None: the model's customary one, as the next
    width: Positive | None = None
    frames: Positive | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None


class Model(Frozen):
    """Which pipeline is loaded, from where, and how it is customarily called."""

    name: str
    id: str | None  # hub id
    revision: str | None  # a commit SHA; "main" is unpinned
    variant: str | None  # file variant on the hub, such as "fp16"
    path: Annotated[str | None, Descriptive()]  # local folder in the Hugging Face layout; what counts is its content
    architecture: (
        str | None
    )  # folder of diffopt/models/architectures: component configs, and for `tiny` the weights too
    content: str | None  # SHA-256 of the local files that make the model; filled in when the recipe is composed
    weights: Literal["pretrained", "random", "tiny"]  # tiny: random ones of the small configs in the folder `tiny`
    pipelines: Pipelines
    task: Annotated[Task, Descriptive()]  # customary, what a workload leaves open
    denoiser: str  # attribute of the pipeline, "unet" or "transformer"
    denoiser_class: str
    vae: str | None  # attribute of the pipeline
    text_encoders: tuple[str, ...]  # attributes of the pipeline
    head_sizes: Annotated[
        tuple[Positive, ...], Descriptive()
    ]  # channels per attention head of the denoiser, each once; kernels have limits
    vae_head_size: Annotated[
        Positive | None, Descriptive()
    ]  # channels of the VAE's one head; None where it has no attention, or not known
    size_multiple: Positive  # height and width must be multiples of this, in pixels
    height: Annotated[Positive, Descriptive()]  # customary, as are the next three: what a workload leaves open, in ids
    width: Annotated[Positive, Descriptive()]  # with the value that it came to
    steps: Annotated[Positive, Descriptive()]
    guidance: Annotated[float, Field(ge=0), Descriptive()]
    prompt: Annotated[str, Descriptive()]  # customary, likewise
    dtype: Annotated[Dtype, Descriptive()]  # customary precision: what the reference runs in
    parameters: Annotated[Parameters, Descriptive()]
    limits: Limits
    licence: Annotated[str | None, Descriptive()]  # of the weights; None where not known
    gated: Annotated[bool | None, Descriptive()]  # whether the hub asks to accept terms first
    frames: Annotated[Positive | None, Descriptive()] = None  # customary length of a video
    frame_step: Positive | None = None  # the VAE's factor in time: a video has a multiple of it and one frame more
    vae_factor: Annotated[Positive | None, Descriptive()] = None  # pixels along a side of one latent pixel
    sampler_needs: Annotated[tuple[str, ...], Descriptive()] = ()  # key=value of what any sampler must take over
    size_limit: Annotated[SizeLimit | None, Descriptive()] = None  # None: draws any size, or not known
    train_timesteps: Annotated[Positive | None, Descriptive()] = (
        None  # of the noise schedule; None: 1000, as nearly all
    )
    fps: Annotated[Positive | None, Descriptive()] = None  # frames per second of the saved video
    guidance_argument: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"
    embedded_guidance: bool = False  # the denoiser is told the scale; no second batch, and no negative prompt is read
    repeated_blocks: tuple[str, ...] | None = None  # classes that compile=regional compiles; None: what diffusers says
    quant_skip: tuple[str, ...] = ()  # words in paths of layers that lose too much when quantized: embedders, outputs
    upscale_factor: Positive | None = None  # of the task upscale: output size over input size
    controlnet: ControlNet | None = None
    embeddings: Embeddings | None = None
    call: Call = Call()
    activations: Annotated[Activations, Descriptive()] = Activations()
    takes: Literal["previous", "first"] = "previous"  # as a later stage of a cascade: whose picture it scales up
    cascade: tuple[Model, ...] = ()  # the stages after this one; in YAML, names of model options

    @model_serializer(mode="wrap")
    def _without_what_most_have_not(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Most models have no limit of size and the usual timesteps, and their recipes stay what they were."""
        data: dict[str, Any] = handler(self)
        for key in ("size_limit", "train_timesteps"):
            if isinstance(data, dict) and data.get(key) is None:  # no dict: what was never validated
                data.pop(key, None)
        return data

    @property
    def guides_by_negative_prompt(self) -> bool:
        """Whether its pipelines leave guidance out where no negative prompt is given, as all with true_cfg_scale do."""
        return self.guidance_argument == "true_cfg_scale"

    @property
    def told_by_its_files(self) -> bool:
        """Whether all that is known of it was read from its own files, a folder's or any repository's of the hub."""
        return self.architecture is None

    @property
    def pinned(self) -> bool:
        """Whether the same recipe will load the same weights for ever."""
        return self.content is not None or (self.revision is not None and len(self.revision) == 40)

    @property
    def stages(self) -> tuple[Model, ...]:
        """This model, and those of the cascade after it."""
        return (self, *self.cascade)

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Height and width in pixels of what each stage draws, where the first draws ``height`` x ``width``."""
        found = [(height, width)]
        for stage in self.cascade:
            given, factor = found[0 if stage.takes == "first" else -1], stage.upscale_factor or 1
            found.append((given[0] * factor, given[1] * factor))
        return tuple(found)
