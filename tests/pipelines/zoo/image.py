"""Other pipelines for images: most have one transformer, a text encoder of their own, one VAE."""

from functools import partial

import torch

from .parts import autoencoder, network, pipeline, scheduler, video_autoencoder

_SIZE = {"height": 16, "width": 16}


def _texts(draw, tokens, width, negative=True, mask=None, kind=torch.long):
    """Return `prompt_embeds` `[1, tokens, width]`, the negative ones, and their masks if named."""
    found = {}
    for sign in ("", "negative_") if negative else ("",):
        found[f"{sign}prompt_embeds"] = draw(1, tokens, width)
        if mask:
            found[f"{sign}{mask}"] = torch.ones(1, tokens, dtype=kind)
    return found


def _qwen_vae():
    return network(
        "AutoencoderKLQwenImage",
        base_dim=6,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def qwen(cls="QwenImagePipeline", inputs=None, control=False, negative=False, **arguments):
    """Return a Qwen-Image pipeline and its arguments."""
    config = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "axes_dims_rope": (8, 4, 4),
    }
    parts = {
        "transformer": network("QwenImageTransformer2DModel", **config),
        "vae": _qwen_vae(),
        "scheduler": scheduler("dynamic"),
    }
    if control:
        parts["controlnet"] = network("QwenImageControlNetModel", **config)
    return pipeline(cls, **parts), lambda draw: (
        _SIZE
        | _texts(draw, 3, 12, negative, "prompt_embeds_mask")
        | (inputs(draw) if inputs else {})
        | arguments
    )


def qwen_edit():
    """Return a pipeline that edits an image of 16 pixels; its own size is one megapixel, always."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module

    module.calculate_dimensions = lambda area, ratio: (16, 16, None)
    return qwen(
        "QwenImageEditPipeline",
        inputs=lambda draw: {"image": draw.picture(16)},
        negative=True,
        true_cfg_scale=3.0,
    )


def z_image(cls="ZImagePipeline", **arguments):
    transformer = network(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    pipe = pipeline(cls, transformer=transformer, vae=autoencoder(), scheduler=scheduler("dynamic"))
    # It takes a list of the embeddings of each prompt, without padding.
    return pipe, lambda draw: (
        _SIZE
        | {"prompt_embeds": [draw(3, 12)], "negative_prompt_embeds": [draw(3, 12)]}
        | arguments
    )


def pixart(cls="PixArtSigmaPipeline", kind="ddim", **arguments):
    transformer = network(
        "PixArtTransformer2DModel",
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=12,
        cross_attention_dim=16,
    )
    pipe = pipeline(
        cls, transformer=transformer, vae=autoencoder(shift_factor=None), scheduler=scheduler(kind)
    )
    return pipe, lambda draw: (
        _SIZE
        | {"negative_prompt": None, "use_resolution_binning": False}
        | _texts(draw, 3, 12, mask="prompt_attention_mask")
        | arguments
    )


def dit(kind="ddim", **arguments):
    transformer = network(
        "DiTTransformer2DModel",
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
    )
    pipe = pipeline(
        "DiTPipeline",
        transformer=transformer,
        vae=autoencoder(shift_factor=None),
        scheduler=scheduler(kind),
    )

    def call(draw):
        label = torch.randint(1000, (1,), generator=draw.generator)
        return {"class_labels": label.tolist(), "output_type": "np"} | arguments  # no latents

    return pipe, call


def sana(cls="SanaPipeline", kind="euler", **arguments):
    sprint = cls == "SanaSprintPipeline"
    transformer = network(
        "SanaTransformer2DModel",
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
        **{"qk_norm": "rms_norm_across_heads", "guidance_embeds": True} if sprint else {},
    )
    vae = network(
        "AutoencoderDC",
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    pipe = pipeline(cls, transformer=transformer, vae=vae, scheduler=scheduler(kind))
    defaults = {"height": 32, "width": 32, "use_resolution_binning": False}
    if sprint:
        defaults["intermediate_timesteps"] = None  # it has a value for two steps only
    else:
        defaults["negative_prompt"] = None
    return pipe, lambda draw: (
        defaults | _texts(draw, 3, 12, not sprint, "prompt_attention_mask") | arguments
    )


def lumina2(**arguments):
    transformer = network(
        "Lumina2Transformer2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 32, 32),
        cap_feat_dim=12,
    )
    pipe = pipeline(
        "Lumina2Pipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("dynamic"),
    )
    size = {"height": 64, "width": 64}  # whatever the VAE, a latent is 8 pixels wide
    return pipe, lambda draw: (
        size | _texts(draw, 3, 12, mask="prompt_attention_mask") | arguments
    )


def hunyuan_image(guidance_embeds=False, **arguments):
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    transformer = network(
        "HunyuanImageTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=guidance_embeds,
        text_embed_dim=12,
        text_embed_2_dim=10,
        rope_axes_dim=(4, 4),
    )
    vae = network(
        "AutoencoderKLHunyuanImage",
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        scaling_factor=1.0,
        spatial_compression_ratio=2,
        sample_size=16,
    )
    mixed = None if guidance_embeds else AdaptiveProjectedMixGuidance(
        adaptive_projected_guidance_start_step=3
    )
    pipe = pipeline(
        "HunyuanImagePipeline",
        transformer=transformer,
        vae=vae,
        scheduler=scheduler("euler"),
        guider=mixed,
        ocr_guider=mixed,
    )

    def call(draw):
        texts = _texts(draw, 3, 12, mask="prompt_embeds_mask")
        glyphs = _texts(draw, 2, 10, mask="prompt_embeds_mask")
        return _SIZE | texts | {f"{name}_2": value for name, value in glyphs.items()} | arguments

    return pipe, call


def hunyuan_dit(kind="ddpm", **arguments):
    transformer = network(
        "HunyuanDiT2DModel",
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        hidden_size=16,
        text_len=3,
        text_len_t5=2,
    )
    pipe = pipeline(
        "HunyuanDiTPipeline",
        transformer=transformer,
        vae=autoencoder(shift_factor=None),
        scheduler=scheduler(kind),
        requires_safety_checker=False,
    )

    def call(draw):
        texts = _texts(draw, 3, 12, mask="prompt_attention_mask")
        others = _texts(draw, 2, 16, mask="prompt_attention_mask")
        size = _SIZE | {"original_size": (16, 16), "use_resolution_binning": False}
        return size | texts | {f"{name}_2": value for name, value in others.items()} | arguments

    return pipe, call


def chroma(**arguments):
    transformer = network(
        "ChromaTransformer2DModel",
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    pipe = pipeline(
        "ChromaPipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("dynamic"),
    )
    return pipe, lambda draw: (
        _SIZE | _texts(draw, 3, 12, mask="prompt_attention_mask", kind=torch.float) | arguments
    )


CASES = {
    "qwen": qwen,
    "qwen-true-cfg": partial(qwen, negative=True, true_cfg_scale=3.0),
    "qwen-img2img": partial(
        qwen, "QwenImageImg2ImgPipeline", strength=0.75,
        inputs=lambda draw: {"image": draw.image(16)},
    ),
    "qwen-edit": qwen_edit,
    "qwen-controlnet": partial(
        qwen, "QwenImageControlNetPipeline", control=True, negative=True, true_cfg_scale=3.0,
        inputs=lambda draw: {"control_image": draw.image(16)},
    ),
    "z-image": z_image,
    "z-image-cfg-truncated": partial(z_image, cfg_truncation=0.5),
    "z-image-turbo": partial(z_image, guidance_scale=0.0),
    "pixart-alpha": partial(pixart, "PixArtAlphaPipeline"),
    "pixart-sigma": partial(pixart, kind="dpm"),
    "dit": dit,
    "dit-dpm": partial(dit, "dpm"),
    "sana": sana,
    "sana-dpm": partial(sana, kind="flow dpm"),
    "sana-sprint": partial(sana, "SanaSprintPipeline", "SCMScheduler"),
    "lumina2": lumina2,
    "lumina2-cfg-truncated": partial(lumina2, cfg_trunc_ratio=0.5),
    "hunyuan-image": hunyuan_image,
    "hunyuan-image-distilled": partial(hunyuan_image, guidance_embeds=True),
    "hunyuan-dit": hunyuan_dit,
    "chroma": chroma,
}  # fmt: skip
