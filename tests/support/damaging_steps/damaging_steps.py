"""Steps of another package that harm pictures, each by as much as its name says."""

from typing import ClassVar, Literal

from diffopt.schema.step import Effect, Order, Step, register


class Damaging(Step):
    order: ClassVar[Order] = Order.LAYOUT

    def verify(self, pipe, site):
        return Effect(f"{self.kind} done", {})


@register("layout")
class FourBits(Damaging):
    """Each weight of the UNet's linear and convolution layers is rounded to one of 15 values per output channel."""

    kind: Literal["four_bits"]

    def apply(self, pipe, site):
        import torch

        for module in pipe.unet.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                weight = module.weight.data
                step = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True) / 7
                weight.copy_((weight / step).round() * step)


@register("layout")
class NoiseOfATenth(Damaging):
    """Each value of a picture is off by a tenth of the range, as a standard deviation."""

    kind: Literal["noise_of_a_tenth"]

    def apply(self, pipe, site):
        import torch

        generator = torch.Generator().manual_seed(1)

        def add(module, arguments, out):
            return out + 0.2 * torch.randn(out.shape, generator=generator)  # from -1 to 1

        pipe.vae.decoder.register_forward_hook(add)


@register("layout")
class NotANumber(Damaging):
    kind: Literal["not_a_number"]

    def apply(self, pipe, site):
        pipe.unet.conv_out.weight.data[0, 0, 0, 0] = float("nan")
