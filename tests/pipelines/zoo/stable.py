"""Stable Diffusion: the U-Nets of 1.5 and XL, and the transformers of 3 and 3.5."""

from functools import partial

import torch

from .parts import autoencoder, network, pipeline, scheduler

_UNET = {
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "in_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 12,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
}
_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 10,  # six sizes, and the pooled text
    "use_linear_projection": True,
}
_UP = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "sample_size": 8}


def _one(draw, *shapes):
    """Return embeddings of a prompt."""
    return {name: draw(*shape) for name, shape in shapes}


def _both(draw, *names_and_shapes):
    """Return the embeddings of a prompt and, drawn apart, of its negative prompt."""
    texts = dict(names_and_shapes)
    return {
        f"{sign}{name}": draw(*shape) for sign in ("", "negative_") for name, shape in texts.items()
    }


def unet(
    cls="StableDiffusionPipeline", kind="ddim", xl=False, inputs=None, control=0,
    config=None, shape=None, **arguments,
):  # fmt: skip
    """Return a pipeline with a U-Net and its arguments; `inputs(draw)` are its images."""
    size_of = _UNET | (_XL if xl else {})
    parts = {
        "unet": network("UNet2DConditionModel", **size_of, **_UP, **shape or {}),
        "vae": autoencoder(shift_factor=None),
        "scheduler": scheduler(kind),
    }
    if control:
        branches = [
            network("ControlNetModel", **size_of, conditioning_embedding_out_channels=(16, 32))
            for _ in range(control)
        ]
        parts["controlnet"] = branches[0] if control == 1 else branches
    if cls in ("StableDiffusionPipeline", "LatentConsistencyModelPipeline"):
        parts["requires_safety_checker"] = False
    texts = [("prompt_embeds", (1, 3, 12))] + ([("pooled_prompt_embeds", (1, 10))] if xl else [])
    prompts = _one if cls == "LatentConsistencyModelPipeline" else _both
    return pipeline(
        cls, **parts, **config or {}
    ), lambda draw: prompts(draw, *texts) | (inputs(draw) if inputs else {}) | arguments


def sd3(cls="StableDiffusion3Pipeline", kind="euler", inputs=None, control=0, **arguments):
    """Return a Stable Diffusion 3 pipeline and its arguments."""
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_projection_dim": 16,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "out_channels": 4,
        "pos_embed_max_size": 16,
    }
    parts = {
        "transformer": network("SD3Transformer2DModel", **config),
        "vae": autoencoder(),
        "scheduler": scheduler(kind),
    }
    if control:
        parts["controlnet"] = network("SD3ControlNetModel", **config)
    texts = ("prompt_embeds", (1, 3, 12)), ("pooled_prompt_embeds", (1, 10))
    size = {"height": 16, "width": 16}
    return pipeline(
        cls, **parts
    ), lambda draw: size | _both(draw, *texts) | (inputs(draw) if inputs else {}) | arguments


def animatediff(**arguments):
    """Return AnimateDiff: the U-Net of Stable Diffusion 1.5 with layers for motion."""
    adapter = network(
        "MotionAdapter",
        block_out_channels=(4, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    pipe = pipeline(
        "AnimateDiffPipeline",
        unet=network("UNet2DConditionModel", **_UNET, **_UP),
        motion_adapter=adapter,
        vae=autoencoder(shift_factor=None),
        scheduler=scheduler("ddim"),
    )
    return (
        pipe,
        lambda draw: {"num_frames": 4} | _both(draw, ("prompt_embeds", (1, 3, 12))) | arguments,
    )


def video_diffusion(**arguments):
    """Return Stable Video Diffusion, which sees its image by a CLIP and by the VAE."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = network(
        "UNetSpatioTemporalConditionModel",
        block_out_channels=(32, 32),  # its norms have 32 groups
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=2,
        projection_class_embeddings_input_dim=12,
        addition_time_embed_dim=4,
    )
    encoder = CLIPVisionConfig(
        hidden_size=8,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        intermediate_size=8,
        patch_size=8,
    )
    size = {"height": 16, "width": 16}
    pipe = pipeline(
        "StableVideoDiffusionPipeline",
        unet=unet,
        vae=network(
            "AutoencoderKLTemporalDecoder",
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
        ),
        image_encoder=CLIPVisionModelWithProjection(encoder).eval().requires_grad_(False),
        feature_extractor=CLIPImageProcessor(size=size, crop_size=size),
        scheduler=scheduler(
            "discrete euler",
            prediction_type="v_prediction",
            timestep_type="continuous",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
        ),
    )
    # The guidance of a frame grows from the first to the last.
    return pipe, lambda draw: size | {"num_frames": 2} | _image(draw) | arguments


def _image(draw):
    return {"image": draw.image(16)}


def _masked(draw):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    return {"image": draw.image(16), "mask_image": mask}


_XL_IMAGE = {"cls": "StableDiffusionXLImg2ImgPipeline", "xl": True, "inputs": _image}
_xl = partial(unet, "StableDiffusionXLPipeline", "discrete euler", xl=True)

CASES = {
    "sdxl": _xl,
    "sdxl-ddim": partial(unet, "StableDiffusionXLPipeline", "ddim", xl=True),
    "sdxl-dpm": partial(unet, "StableDiffusionXLPipeline", "dpm", xl=True),
    "sdxl-unipc": partial(unet, "StableDiffusionXLPipeline", "unipc", xl=True),
    "sdxl-heun": partial(unet, "StableDiffusionXLPipeline", "discrete heun", xl=True),
    "sdxl-ancestral": partial(unet, "StableDiffusionXLPipeline", "ancestral", xl=True),
    "sdxl-without-cfg": partial(_xl, guidance_scale=1.0),
    "sdxl-denoising-end": partial(_xl, denoising_end=0.7),
    "sdxl-img2img": partial(unet, kind="discrete euler", strength=0.75, **_XL_IMAGE),
    "sdxl-refiner": partial(unet, kind="discrete euler", denoising_start=0.3, **_XL_IMAGE),
    "sdxl-controlnet": partial(
        unet, "StableDiffusionXLControlNetPipeline", "discrete euler", xl=True, inputs=_image,
        control=1,
    ),
    "sdxl-controlnet-first-half": partial(
        unet, "StableDiffusionXLControlNetPipeline", "discrete euler", xl=True, inputs=_image,
        control=1, control_guidance_end=0.5,
    ),
    "sdxl-two-controlnets": partial(
        unet, "StableDiffusionXLControlNetPipeline", "discrete euler", xl=True, control=2,
        inputs=lambda draw: {"image": [draw.image(16), draw.image(16)]},
    ),
    "sdxl-inpaint": partial(
        unet, "StableDiffusionXLInpaintPipeline", "discrete euler", xl=True, inputs=_masked,
        strength=0.75,
    ),
    "sdxl-perturbed-attention": partial(
        unet, "StableDiffusionXLPAGPipeline", "discrete euler", xl=True
    ),
    "sd15": unet,
    "sd15-dpm": partial(unet, kind="dpm"),
    "sd15-ancestral": partial(unet, kind="ancestral"),
    "sd15-pndm": partial(unet, kind="pndm"),
    "sd15-lcm": partial(unet, kind="lcm"),
    "latent-consistency": partial(
        unet, "LatentConsistencyModelPipeline", "lcm", shape={"time_cond_proj_dim": 8}
    ),
    "animatediff": animatediff,
    "stable-video-diffusion": video_diffusion,
    "sd3": sd3,
    "sd3-without-cfg": partial(sd3, guidance_scale=1.0),
    "sd3-heun": partial(sd3, kind="heun"),
    "sd3-img2img": partial(sd3, "StableDiffusion3Img2ImgPipeline", inputs=_image, strength=0.75),
    "sd3-controlnet": partial(
        sd3, "StableDiffusion3ControlNetPipeline", control=1,
        inputs=lambda draw: {"control_image": draw.image(16)},
    ),
    "sd3-perturbed-attention": partial(sd3, "StableDiffusion3PAGPipeline"),
    "sd35-skip-layers": partial(
        sd3, skip_guidance_layers=[1], skip_layer_guidance_start=0.2,
        skip_layer_guidance_stop=0.7,
    ),
}  # fmt: skip
