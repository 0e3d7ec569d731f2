"""Other pipelines for images: most have one transformer, a text encoder of their own, one VAE."""

from functools import partial

import torch

from .parts import autoencoder, network, pipeline, scheduler

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
        "num_layers": 2,
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
    return (
        pipeline(cls, **parts),
        lambda draw: (
            _SIZE
            | _texts(draw, 3, 12, negative, "prompt_embeds_mask")
            | (inputs(draw) if inputs else {})
            | arguments
        ),
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


def z_image(cls="ZImagePipeline", inputs=None, **arguments):
    transformer = network(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    pipe = pipeline(cls, transformer=transformer, vae=autoencoder(), scheduler=scheduler("dynamic"))
    # It takes a list of the embeddings of each prompt, without padding.
    return (
        pipe,
        lambda draw: (
            _SIZE
            | {"prompt_embeds": [draw(3, 12)], "negative_prompt_embeds": [draw(3, 12)]}
            | (inputs(draw) if inputs else {})
            | arguments
        ),
    )


def pixart(cls="PixArtSigmaPipeline", kind="ddim", **arguments):
    transformer = network(
        "PixArtTransformer2DModel",
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=12,
        cross_attention_dim=16,
    )
    pipe = pipeline(
        cls, transformer=transformer, vae=autoencoder(shift_factor=None), scheduler=scheduler(kind)
    )
    return (
        pipe,
        lambda draw: (
            _SIZE
            | {"negative_prompt": None, "use_resolution_binning": False}
            | _texts(draw, 3, 12, mask="prompt_attention_mask")
            | arguments
        ),
    )


def dit(kind="ddim", **arguments):
    transformer = network(
        "DiTTransformer2DModel",
        sample_size=8,
        num_layers=2,
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
        num_layers=2,
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
    return (
        pipe,
        lambda draw: (
            defaults | _texts(draw, 3, 12, not sprint, "prompt_attention_mask") | arguments
        ),
    )


def lumina2(**arguments):
    transformer = network(
        "Lumina2Transformer2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
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
    return pipe, lambda draw: size | _texts(draw, 3, 12, mask="prompt_attention_mask") | arguments


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
    mixed = (
        None
        if guidance_embeds
        else AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3)
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


def chroma(cls="ChromaPipeline", inputs=None, **arguments):
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
        cls,
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("dynamic"),
    )
    return (
        pipe,
        lambda draw: (
            _SIZE
            | _texts(draw, 3, 12, mask="prompt_attention_mask", kind=torch.float)
            | (inputs(draw) if inputs else {})
            | arguments
        ),
    )


def hidream(**arguments):
    transformer = network(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[12, 10],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=(0, 1),
    )
    pipe = pipeline(
        "HiDreamImagePipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("dynamic"),
    )
    pipe.default_sample_size = 8  # it scales any size to this area

    def call(draw):
        found = dict(_SIZE)
        for sign in ("", "negative_"):
            found[f"{sign}prompt_embeds_t5"] = draw(1, 3, 12)
            found[f"{sign}prompt_embeds_llama3"] = draw(2, 1, 2, 10)  # layers first
            found[f"{sign}pooled_prompt_embeds"] = draw(1, 8)
        return found | arguments

    return pipe, call


def aura_flow(**arguments):
    transformer = network(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=12,
        out_channels=4,
        pos_embed_max_size=16,
    )
    pipe = pipeline(
        "AuraFlowPipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("euler"),
    )
    return pipe, lambda draw: _SIZE | _texts(draw, 3, 12, mask="prompt_attention_mask") | arguments


def _tokenizer():
    """Return a tokenizer that knows five words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "zero", "one", "two", "three"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def omnigen(**arguments):
    """Its transformer reads the tokens itself, so that it needs a tokenizer but no text encoder."""
    transformer = network(
        "OmniGenTransformer2DModel",
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_layers=2,
        in_channels=4,
        time_step_dim=8,
        vocab_size=32,
        pad_token_id=0,
        pos_embed_max_size=16,
        rope_scaling={"long_factor": [1, 1, 1, 1], "short_factor": [1, 1, 1, 1]},
    )
    pipe = pipeline(
        "OmniGenPipeline",
        transformer=transformer,
        vae=autoencoder(shift_factor=None, blocks=4),
        scheduler=scheduler("euler", shift=1.0, invert_sigmas=True, num_train_timesteps=1),
        tokenizer=_tokenizer(),
    )

    def call(draw):
        count = int(torch.randint(9, (1,), generator=draw.generator))
        words = " ".join(["one", "two", "three"] * 3 + ["three"] * count)
        return {"height": 64, "width": 64, "prompt": words} | arguments

    return pipe, call


def cogview4(**arguments):
    transformer = network(
        "CogView4Transformer2DModel",
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    pipe = pipeline(
        "CogView4Pipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("dynamic", base_shift=0.25, max_shift=0.75, time_shift_type="linear"),
    )
    return pipe, lambda draw: _SIZE | _texts(draw, 3, 12) | arguments


def bria(**arguments):
    transformer = network(
        "BriaTransformer2DModel",
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    pipe = pipeline(
        "BriaPipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("dynamic"),
    )
    return pipe, lambda draw: _SIZE | _texts(draw, 3, 12) | arguments


def krea2(**arguments):
    transformer = network(
        "Krea2Transformer2DModel",
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=12,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    pipe = pipeline(
        "Krea2Pipeline",
        transformer=transformer,
        vae=_qwen_vae(),
        scheduler=scheduler("dynamic"),
        text_encoder_select_layers=(0, 1, 2),
    )

    def call(draw):
        found = dict(_SIZE)
        for sign in ("", "negative_"):
            found[f"{sign}prompt_embeds"] = draw(1, 3, 3, 12)  # tokens, layers of the encoder
            found[f"{sign}prompt_embeds_mask"] = torch.ones(1, 3, dtype=torch.bool)
        return found | arguments

    return pipe, call


def kandinsky5(**arguments):
    transformer = network(
        "Kandinsky5Transformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=12,
        in_text_dim2=10,
        time_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    pipe = pipeline(
        "Kandinsky5T2IPipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("euler"),
    )
    pipe.resolutions = [(64, 64)]  # it takes the nearest of its own, all of one megapixel

    def call(draw):
        found = dict(_SIZE)
        for sign in ("", "negative_"):
            found[f"{sign}prompt_embeds_qwen"] = draw(1, 3, 12)
            found[f"{sign}prompt_embeds_clip"] = draw(1, 10)
            found[f"{sign}prompt_cu_seqlens"] = torch.tensor([0, 3], dtype=torch.int32)
        return found | {"height": 64, "width": 64} | arguments

    return pipe, call


def prx(**arguments):
    transformer = network(
        "PRXTransformer2DModel",
        patch_size=2,
        in_channels=4,
        context_in_dim=12,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
    )
    pipe = pipeline(
        "PRXPipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("euler"),
        # The parts are checked against their types, and the tokenizer is asked for its length.
        tokenizer=_tokenizer(),
    )
    return (
        pipe,
        lambda draw: (
            _SIZE
            | {"use_resolution_binning": False, "negative_prompt": None}
            | _texts(draw, 3, 12, mask="prompt_attention_mask", kind=torch.bool)
            | arguments
        ),
    )


def ovis(**arguments):
    transformer = network(
        "OvisImageTransformer2DModel",
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = pipeline(
        "OvisImagePipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("dynamic"),
    )
    return pipe, lambda draw: _SIZE | {"negative_prompt": None} | _texts(draw, 3, 12) | arguments


def lumina(**arguments):
    """Return Lumina-Next, which came before Lumina 2."""
    transformer = network(
        "LuminaNextDiT2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        learn_sigma=True,
        cross_attention_dim=12,
    )
    pipe = pipeline(
        "LuminaPipeline",
        transformer=transformer,
        vae=autoencoder(),
        scheduler=scheduler("euler"),
    )
    size = {"height": 64, "width": 64}
    return pipe, lambda draw: size | _texts(draw, 3, 12, mask="prompt_attention_mask") | arguments


def cogview3(**arguments):
    transformer = network(
        "CogView3PlusTransformer2DModel",
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    pipe = pipeline(
        "CogView3PlusPipeline",
        transformer=transformer,
        vae=autoencoder(shift_factor=None),
        scheduler=scheduler("CogVideoXDDIMScheduler"),
    )
    return pipe, lambda draw: _SIZE | _texts(draw, 3, 12) | arguments


def _image(draw):
    return {"image": draw.image(16)}


CASES = {
    "qwen": qwen,
    "qwen-true-cfg": partial(qwen, negative=True, true_cfg_scale=3.0),
    "qwen-img2img": partial(
        qwen, "QwenImageImg2ImgPipeline", strength=0.75,
        inputs=_image,
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
    "hidream": hidream,
    "aura-flow": aura_flow,
    "omnigen": omnigen,
    "cogview4": cogview4,
    "bria": bria,
    "krea2": krea2,
    "kandinsky5-image": kandinsky5,
    "prx": prx,
    "ovis": ovis,
    "qwen-inpaint": partial(
        qwen, "QwenImageInpaintPipeline", strength=0.75,
        inputs=lambda draw: _image(draw) | {"mask_image": draw.image(16, 1).round()},
    ),
    "z-image-img2img": partial(z_image, "ZImageImg2ImgPipeline", inputs=_image, strength=0.75),
    "chroma-img2img": partial(chroma, "ChromaImg2ImgPipeline", inputs=_image, strength=0.75),
    "lumina": lumina,
    "cogview3": cogview3,
}  # fmt: skip
