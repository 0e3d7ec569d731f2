"""FLUX.1, FLUX.2 and what descends from them: one builder for each network."""

from functools import partial

import torch

from .parts import autoencoder, network, pipeline, scheduler

_FLUX = {
    "patch_size": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "axes_dims_rope": (4, 6, 6),
}


def _texts(draw, negative=False):
    texts = {"prompt_embeds": draw(1, 3, 12), "pooled_prompt_embeds": draw(1, 10)}
    return texts | ({f"negative_{k}": draw(*v.shape) for k, v in texts.items()} if negative else {})


def flux(
    cls="FluxPipeline", kind="dynamic", inputs=None, channels=16, control=None, negative=False,
    guidance=True, **arguments,
):  # fmt: skip
    """Return a FLUX.1 pipeline and its arguments; `inputs(draw)` are the images it is given."""
    transformer = network(
        "FluxTransformer2DModel",
        in_channels=channels,
        out_channels=16,
        guidance_embeds=guidance,
        **_FLUX,
    )
    parts = {"transformer": transformer, "vae": autoencoder(), "scheduler": scheduler(kind)}
    if control:
        parts["controlnet"] = network(
            "FluxControlNetModel", in_channels=16, guidance_embeds=guidance, **_FLUX
        )
    size = {"height": 16, "width": 16}
    return pipeline(
        cls, **parts
    ), lambda draw: size | _texts(draw, negative) | (inputs(draw) if inputs else {}) | arguments


def _image(draw):
    return {"image": draw.image(16)}


def _masked(draw):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return {"image": draw.image(16), "mask_image": mask}


def _control(draw):
    return {"control_image": draw.image(16)}


def flux2(cls="Flux2Pipeline", inputs=None, guidance=True, negative=False, **arguments):
    """Return a FLUX.2 pipeline and its arguments."""
    transformer = network(
        "Flux2Transformer2DModel",
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    vae = network(
        "AutoencoderKLFlux2",
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    pipe = pipeline(cls, transformer=transformer, vae=vae, scheduler=scheduler("dynamic"))

    def call(draw):
        texts = {"prompt_embeds": draw(1, 3, 12)}
        if negative:
            texts["negative_prompt_embeds"] = draw(1, 3, 12)
        size = {"height": 16, "width": 16}
        return size | texts | (inputs(draw) if inputs else {}) | arguments

    return pipe, call


CASES = {
    "flux": flux,
    "flux-without-guidance": partial(flux, guidance=False),
    "flux-true-cfg": partial(flux, negative=True, true_cfg_scale=3.0),
    "flux-dpm": partial(flux, kind="dynamic dpm"),
    "flux-sde": partial(flux, kind="dynamic sde"),
    "flux-unipc": partial(flux, kind="dynamic unipc"),
    "flux-stochastic": partial(flux, kind="stochastic"),
    "flux-img2img": partial(flux, "FluxImg2ImgPipeline", inputs=_image, strength=0.75),
    "flux-inpaint": partial(flux, "FluxInpaintPipeline", inputs=_masked, strength=0.75),
    "flux-fill": partial(flux, "FluxFillPipeline", inputs=_masked, channels=48),
    "flux-kontext": partial(
        flux, "FluxKontextPipeline", inputs=_image, max_area=256, _auto_resize=False
    ),
    "flux-kontext-true-cfg": partial(
        flux, "FluxKontextPipeline", inputs=_image, max_area=256, _auto_resize=False,
        negative=True, true_cfg_scale=3.0,
    ),
    "flux-control": partial(flux, "FluxControlPipeline", inputs=_control, channels=32),
    "flux-controlnet": partial(flux, "FluxControlNetPipeline", inputs=_control, control=True),
    "flux-controlnet-first-half": partial(
        flux, "FluxControlNetPipeline", inputs=_control, control=True, control_guidance_end=0.5
    ),
    "flux-kontext-inpaint": partial(
        flux, "FluxKontextInpaintPipeline", inputs=_masked, max_area=256, _auto_resize=False,
        strength=0.75,
    ),
    "flux-control-img2img": partial(
        flux, "FluxControlImg2ImgPipeline", inputs=lambda draw: _image(draw) | _control(draw),
        channels=32, strength=0.75,
    ),
    "flux-controlnet-inpaint": partial(
        flux, "FluxControlNetInpaintPipeline", control=True, strength=0.75,
        inputs=lambda draw: _masked(draw) | _control(draw),
    ),
    "flux2": flux2,
    "flux2-edit": partial(flux2, inputs=lambda draw: {"image": draw.picture(64)}),
    "flux2-klein": partial(flux2, "Flux2KleinPipeline", guidance=False, negative=True),
    "flux2-klein-kv": partial(
        flux2, "Flux2KleinKVPipeline", guidance=False,
        inputs=lambda draw: {"image": draw.picture(64)},
    ),
}  # fmt: skip
