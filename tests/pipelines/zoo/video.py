"""Pipelines for video and audio."""

from functools import partial

import torch

from .parts import autoencoder, network, pipeline, scheduler, video_autoencoder

_VIDEO = {"height": 32, "width": 32, "num_frames": 9}


def _texts(draw, width=12, tokens=3, negative=True, mask=None, kind=torch.long):
    """Return `prompt_embeds` `[1, tokens, width]`, the negative ones, and their masks if named."""
    found = {}
    for sign in ("", "negative_") if negative else ("",):
        found[f"{sign}prompt_embeds"] = draw(1, tokens, width)
        if mask:
            found[f"{sign}{mask}"] = torch.ones(1, tokens, dtype=kind)
    return found


def _wan_transformer(name="WanTransformer3DModel", channels=4, seen=None, **config):
    return network(
        name,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=seen or channels,
        out_channels=channels,
        text_dim=12,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=32,
        **config,
    )


def wan(cls="WanPipeline", kind="flow unipc", experts=1, inputs=None, config=None, **arguments):
    """Return a Wan pipeline and its arguments; with two experts the second ends the sampling."""
    seen = 4 if inputs is None else 2 * 4 + 4  # latents, those of the image, and its mask
    # The first expert and the second differ: the same weights would hide a wrong one.
    experts = {f"transformer{end}": _wan_transformer(seen=seen) for end in ("", "_2")[:experts]}
    parts = experts | {"vae": video_autoencoder(), "scheduler": scheduler(kind)}
    return pipeline(
        cls, **parts, **config or {}
    ), lambda draw: _VIDEO | _texts(draw) | (inputs(draw) if inputs else {}) | arguments


def wan_21_image_to_video(**arguments):
    """Wan 2.1 sees the image by a CLIP too, which cannot be passed by."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        intermediate_size=8,
        patch_size=8,
    )
    size = {"height": 16, "width": 16}
    pipe = pipeline(
        "WanImageToVideoPipeline",
        transformer=_wan_transformer(seen=12, image_dim=8),
        vae=video_autoencoder(),
        scheduler=scheduler("flow unipc"),
        image_encoder=CLIPVisionModel(config).eval().requires_grad_(False),
        image_processor=CLIPImageProcessor(size=size, crop_size=size),
    )
    return pipe, lambda draw: _VIDEO | _texts(draw) | {"image": draw.picture(32)} | arguments


def wan_5b(**arguments):
    """Wan 2.2 TI2V-5B: one transformer, which is given the timestep of each token."""
    pipe = pipeline(
        "WanPipeline",
        transformer=_wan_transformer(),
        vae=video_autoencoder(scale_factor_spatial=8),
        scheduler=scheduler("flow unipc"),
        expand_timesteps=True,
    )
    return pipe, lambda draw: _VIDEO | _texts(draw) | arguments


def skyreels(**arguments):
    pipe = pipeline(
        "SkyReelsV2Pipeline",
        transformer=_wan_transformer("SkyReelsV2Transformer3DModel"),
        vae=video_autoencoder(),
        scheduler=scheduler("flow unipc"),
    )
    return pipe, lambda draw: _VIDEO | _texts(draw) | arguments


def ltx(cls="LTXPipeline", inputs=None, **arguments):
    transformer = network(
        "LTXVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=12,
    )
    vae = network(
        "AutoencoderKLLTXVideo",
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
    )
    pipe = pipeline(cls, transformer=transformer, vae=vae, scheduler=scheduler("dynamic"))
    return (
        pipe,
        lambda draw: (
            _VIDEO
            | _texts(draw, mask="prompt_attention_mask")
            | (inputs(draw) if inputs else {})
            | arguments
        ),
    )


def ltx2(**arguments):
    """Return LTX 2, which steps the latents of a video and of its sound at once."""
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    transformer = network(
        "LTX2VideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=12,
        rope_double_precision=False,
        rope_type="split",
    )
    connectors = LTX2TextConnectors(
        caption_channels=12,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=6,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=6,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_theta=10000.0,
        rope_double_precision=False,
        causal_temporal_positioning=False,
        rope_type="split",
    )
    vae = network(
        "AutoencoderKLLTX2Video",
        latent_channels=4,
        block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True),
        decoder_spatio_temporal_scaling=(True, True, True),
        decoder_inject_noise=(False,) * 4,
        downsample_type=("spatial",) * 3,
        upsample_residual=(False,) * 3,
        upsample_factor=(1, 1, 1),
        patch_size=1,
    )
    audio_vae = network(
        "AutoencoderKLLTX2Audio",
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=4,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    pipe = pipeline(
        "LTX2Pipeline",
        transformer=transformer,
        vae=vae,
        audio_vae=audio_vae,
        connectors=connectors.eval().requires_grad_(False),
        vocoder=vocoder.eval().requires_grad_(False),
        scheduler=scheduler("dynamic"),
    )
    defaults = {"frame_rate": 25.0, "num_frames": 5, "spatio_temporal_guidance_blocks": [1]}
    # One width for each of the encoder's layers: 2 times 12.
    return (
        pipe,
        lambda draw: _VIDEO | defaults | _texts(draw, 24, mask="prompt_attention_mask") | arguments,
    )


def _hunyuan_video_vae():
    return network(
        "AutoencoderKLHunyuanVideo",
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )


def hunyuan_video(negative=False, **arguments):
    transformer = network(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(2, 4, 4),
    )
    pipe = pipeline(
        "HunyuanVideoPipeline",
        transformer=transformer,
        vae=_hunyuan_video_vae(),
        scheduler=scheduler("euler"),
    )

    def call(draw):
        texts = _texts(draw, negative=negative, mask="prompt_attention_mask")
        pooled = {"pooled_prompt_embeds": draw(1, 10)}
        if negative:
            pooled["negative_pooled_prompt_embeds"] = draw(1, 10)
        return _VIDEO | texts | pooled | arguments

    return pipe, call


def hunyuan_video_15(**arguments):
    from diffusers.guiders import ClassifierFreeGuidance

    transformer = network(
        "HunyuanVideo15Transformer3DModel",
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        text_embed_dim=12,
        text_embed_2_dim=10,
        image_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = network(
        "AutoencoderKLHunyuanVideo15",
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    pipe = pipeline(
        "HunyuanVideo15Pipeline",
        transformer=transformer,
        vae=vae,
        scheduler=scheduler("euler"),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
        # It reads the type of its numbers here, even where no text is encoded.
        text_encoder=_tiny_encoder(),
    )

    def call(draw):
        texts = _texts(draw, mask="prompt_embeds_mask")
        glyphs = _texts(draw, 10, 2, mask="prompt_embeds_mask")
        size = {"height": 16, "width": 16, "num_frames": 5}
        return size | texts | {f"{name}_2": value for name, value in glyphs.items()} | arguments

    return pipe, call


def _tiny_encoder():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=8, d_model=12, d_kv=4, d_ff=8, num_layers=1)).eval()


def cogvideox(kind="CogVideoXDDIMScheduler", inputs=None, **arguments):
    """Return CogVideoX and its arguments; with `inputs` the pipeline that starts from an image."""
    transformer = network(
        "CogVideoXTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8 if inputs else 4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=12,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=3,
    )
    vae = network(
        "AutoencoderKLCogVideoX",
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipe = pipeline(
        "CogVideoXImageToVideoPipeline" if inputs else "CogVideoXPipeline",
        transformer=transformer,
        vae=vae,
        scheduler=scheduler(kind),
    )
    return pipe, lambda draw: _VIDEO | _texts(draw) | (inputs(draw) if inputs else {}) | arguments


def mochi(**arguments):
    transformer = network(
        "MochiTransformer3DModel",
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=8,
        in_channels=12,  # as many as its pipeline has means and deviations of
        qk_norm="rms_norm",
        text_embed_dim=16,  # its pooling has 8 heads
        time_embed_dim=4,
        max_sequence_length=3,
    )
    vae = network(
        "AutoencoderKLMochi",
        latent_channels=12,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
        latents_mean=[0.0] * 12,
        latents_std=[1.0] * 12,
    )
    pipe = pipeline(
        "MochiPipeline",
        transformer=transformer,
        vae=vae,
        scheduler=scheduler("euler", shift=1.0, invert_sigmas=True),
    )
    return (
        pipe,
        lambda draw: (
            _VIDEO | _texts(draw, 16, mask="prompt_attention_mask", kind=torch.bool) | arguments
        ),
    )


class _Harmless(torch.nn.Module):
    """Cosmos refuses to run without a checker of what it is asked for and what it makes."""

    dtype, device = torch.float32, torch.device("cpu")

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, frames):
        return frames


def cosmos(cls="CosmosTextToWorldPipeline", kind="EDMEulerScheduler", inputs=None, **arguments):
    transformer = network(
        "CosmosTransformer3DModel",
        in_channels=5 if inputs else 4,  # which of the frames are given
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=12,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        concat_padding_mask=True,
        extra_pos_embed_type="learnable",
    )
    if kind == "EDMEulerScheduler":
        vae = network(
            "AutoencoderKLCosmos",
            latent_channels=4,
            encoder_block_out_channels=(4, 4, 4, 4),
            decode_block_out_channels=(4, 4, 4, 4),
            attention_resolutions=(),
            resolution=32,
            num_layers=1,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
            latents_mean=[0.0] * 4 * 4,
            latents_std=[1.0] * 4 * 4,
        )
        size = _VIDEO
        timing = {"sigma_max": 80.0, "sigma_data": 0.5, "final_sigmas_type": "sigma_min"}
    else:
        vae = video_autoencoder()
        size = {"height": 32, "width": 32}
        timing = {"use_karras_sigmas": True}
    pipe = pipeline(
        cls,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler(kind, **timing),
        safety_checker=_Harmless(),
    )
    return pipe, lambda draw: size | _texts(draw) | (inputs(draw) if inputs else {}) | arguments


def allegro(**arguments):
    transformer = network(
        "AllegroTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=4,
        sample_height=4,
        sample_frames=3,
        caption_channels=12,
    )
    vae = network(
        "AutoencoderKLAllegro",
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    vae.enable_tiling()  # it refuses to decode otherwise
    pipe = pipeline(
        "AllegroPipeline", transformer=transformer, vae=vae, scheduler=scheduler("ddim")
    )
    return (
        pipe,
        lambda draw: (
            _VIDEO
            | {"negative_prompt": None}
            | _texts(draw, mask="prompt_attention_mask")
            | arguments
        ),
    )


def latte(**arguments):
    transformer = network(
        "LatteTransformer3DModel",
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=12,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=4,
    )
    pipe = pipeline(
        "LattePipeline",
        transformer=transformer,
        vae=autoencoder(shift_factor=None),
        scheduler=scheduler("ddim"),
    )
    size = {"height": 16, "width": 16, "video_length": 4}
    return pipe, lambda draw: size | {"negative_prompt": None} | _texts(draw) | arguments


def stable_audio(**arguments):
    from diffusers import StableAudioProjectionModel

    transformer = network(
        "StableAudioDiTModel",
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=16,
        cross_attention_input_dim=8,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=12, conditioning_dim=8, min_value=0, max_value=32
    )
    vae = network(
        "AutoencoderOobleck",
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[1, 2],
        sampling_rate=4,
    )
    pipe = pipeline(
        "StableAudioPipeline",
        transformer=transformer,
        vae=vae,
        projection_model=projection.eval().requires_grad_(False),
        scheduler=scheduler("EDMDPMSolverMultistepScheduler", sigma_data=1.0),
    )
    return pipe, lambda draw: _texts(draw) | arguments


def kandinsky5_video(**arguments):
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
        "Kandinsky5T2VPipeline",
        transformer=transformer,
        vae=_hunyuan_video_vae(),
        scheduler=scheduler("euler"),
    )

    def call(draw):
        found = dict(_VIDEO)
        for sign in ("", "negative_"):
            found[f"{sign}prompt_embeds_qwen"] = draw(1, 3, 12)
            found[f"{sign}prompt_embeds_clip"] = draw(1, 10)
            found[f"{sign}prompt_cu_seqlens"] = torch.tensor([0, 3], dtype=torch.int32)
        return found | arguments

    return pipe, call


def wan_vace(**arguments):
    """Return Wan with its branch for conditions: a video and a mask of what is to be changed."""
    pipe = pipeline(
        "WanVACEPipeline",
        transformer=_wan_transformer(
            "WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=2 * 4 + 64
        ),
        vae=video_autoencoder(),
        scheduler=scheduler("flow unipc"),
    )
    return (
        pipe,
        lambda draw: (
            _VIDEO | _texts(draw) | {"video": [draw.picture(32) for _ in range(9)]} | arguments
        ),
    )


def wan_video_to_video(**arguments):
    pipe = pipeline(
        "WanVideoToVideoPipeline",
        transformer=_wan_transformer(),
        vae=video_autoencoder(),
        scheduler=scheduler("flow unipc"),
    )
    size = {"height": 32, "width": 32, "strength": 0.75}
    return (
        pipe,
        lambda draw: (
            size | _texts(draw) | {"video": [draw.picture(32) for _ in range(9)]} | arguments
        ),
    )


def sana_video(**arguments):
    transformer = network(
        "SanaVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=12,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    pipe = pipeline(
        "SanaVideoPipeline",
        transformer=transformer,
        vae=video_autoencoder(),
        scheduler=scheduler("flow dpm"),
    )
    size = {"height": 32, "width": 32, "frames": 9, "use_resolution_binning": False}
    return (
        pipe,
        lambda draw: (
            size
            | {"negative_prompt": None}
            | _texts(draw, mask="prompt_attention_mask")
            | arguments
        ),
    )


def motif_video(**arguments):
    from diffusers.guiders import AdaptiveProjectedGuidance

    transformer = network(
        "MotifVideoTransformer3DModel",
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=12,
        rope_axes_dim=(4, 4, 4),
    )
    pipe = pipeline(
        "MotifVideoPipeline",
        transformer=transformer,
        vae=video_autoencoder(),
        scheduler=scheduler("euler"),
        guider=AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5),
    )
    return pipe, lambda draw: _VIDEO | _texts(draw, mask="prompt_attention_mask") | arguments


def _image(draw):
    return {"image": draw.picture(32)}


_TWO = {"experts": 2, "config": {"boundary_ratio": 0.875}}
CASES = {
    "wan21": wan,
    "wan21-euler": partial(wan, kind="euler"),
    "wan21-image-to-video": wan_21_image_to_video,
    "wan22": partial(wan, guidance_scale_2=3.0, **_TWO),
    "wan22-euler": partial(wan, kind="euler", **_TWO),
    "wan22-image-to-video": partial(wan, "WanImageToVideoPipeline", inputs=_image, **_TWO),
    "wan22-5b": wan_5b,
    "wan-vace": wan_vace,
    "wan-video-to-video": wan_video_to_video,
    "skyreels": skyreels,
    "ltx": ltx,
    "ltx-image-to-video": partial(
        ltx, "LTXImageToVideoPipeline", inputs=lambda draw: {"image": draw.image(32)}
    ),
    "ltx2": ltx2,
    "ltx2-one-pass": partial(
        ltx2, guidance_scale=1.0, stg_scale=0.0, modality_scale=1.0, guidance_rescale=0.0,
        audio_guidance_scale=1.0, audio_stg_scale=0.0, audio_modality_scale=1.0,
        audio_guidance_rescale=0.0, spatio_temporal_guidance_blocks=None,
    ),
    "hunyuan-video": hunyuan_video,
    "hunyuan-video-true-cfg": partial(hunyuan_video, negative=True, true_cfg_scale=3.0),
    "hunyuan-video-15": hunyuan_video_15,
    "cogvideox": cogvideox,
    "cogvideox-dpm": partial(cogvideox, "CogVideoXDPMScheduler"),
    "cogvideox-image-to-video": partial(cogvideox, inputs=_image),
    "mochi": mochi,
    "cosmos": cosmos,
    "cosmos-video-to-world": partial(cosmos, "CosmosVideoToWorldPipeline", inputs=_image),
    "cosmos2": partial(cosmos, "Cosmos2TextToImagePipeline", "FlowMatchEulerDiscreteScheduler"),
    "kandinsky5-video": kandinsky5_video,
    "sana-video": sana_video,
    "motif-video": motif_video,
    "allegro": allegro,
    "latte": latte,
    "stable-audio": stable_audio,
}  # fmt: skip
