"""Captions as tokens: the two tokenizers, the two text encoders, and captions made of parts.

A caption of two things is put together from tokens of its parts on the GPU, since there are too
many of them to write down.
"""

import itertools
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from training import data, steps

TOKENS = 24  # caption tokens, padded, in both encoders
WIDTH = 128


def sample_captions(selection: list[data.Emoji]) -> list[str]:
    """Captions in which every word occurs: every pair of one thing, and one chain of two."""
    captions = [data.caption(emoji, colour) for emoji in selection for colour in data.COLOURS]
    neighbours = itertools.pairwise(selection)
    return captions + [data.caption(left, "white", right) for left, right in neighbours]


def build_clip_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Byte-pair tokenizer in CLIP's form, trained until every word of the captions is one token."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainee = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=special[1]))
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted({letter for line in captions for letter in line if letter != " "})
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=special,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trainee.train_from_iterator(captions, trainer)
    trained = json.loads(trainee.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    return CLIPTokenizer(vocab=trained["vocab"], merges=merges, model_max_length=TOKENS)


def build_t5_tokenizer(captions: list[str]) -> T5Tokenizer:
    """Unigram tokenizer in T5's form: every word of the captions, single letters for the rest."""
    words = sorted({word for line in captions for word in line.split()})
    letters = sorted(set("".join(words)) | {"▁"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -5.0) for word in words]
    pieces += [(letter, -20.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)


def build_tokenizers(selection: list[data.Emoji]) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Both tokenizers, for captions of this selection."""
    captions = sample_captions(selection)
    return build_clip_tokenizer(captions), build_t5_tokenizer(captions)


def kept_tokenizers(selection: list[data.Emoji], folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """The tokenizers kept in a folder, or new ones, which are then kept there.

    The trainer of byte pairs numbers ties differently in every process.
    """
    if not (folder / "tokenizer_2").exists():
        beside = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        clip, t5 = build_tokenizers(selection)
        clip.save_pretrained(beside / "tokenizer")
        t5.save_pretrained(beside / "tokenizer_2")
        steps.replace_directory(beside, folder)
    return load_tokenizers(folder)


def load_tokenizers(folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """The tokenizers ``tokenizer`` and ``tokenizer_2`` of a folder."""
    return (
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
    )


def build_encoders(
    tokenizer: CLIPTokenizer, tokenizer_2: T5Tokenizer
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Two fresh two-layer text encoders of width 128."""
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        # The pooled vector is read at the first token with this id.
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(tokenizer_2),
        d_model=WIDTH,
        d_kv=32,
        d_ff=3 * WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer_2.pad_token_id,
        eos_token_id=tokenizer_2.eos_token_id,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def tokenize(tokenizer: CLIPTokenizer | T5Tokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids ``(n, 24)``, padded as FluxPipeline pads them."""
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


class Parts:
    """Token ids of all captions of one tokenizer, put together from parts on the device.

    A caption is (left, right, colour): of one thing ``right`` is the number of emoji, and the empty
    caption is (number of emoji, number of emoji, number of colours).
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer | T5Tokenizer,
        selection: list[data.Emoji],
        device: torch.device,
    ):
        def ids_of(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, add_special_tokens=False).input_ids

        around = tokenizer("").input_ids  # the empty caption: a start where there is one, an end
        self.start, end = around[:-1], around[-1:]
        self.padding = tokenizer.pad_token_id
        subjects = [emoji.subject for emoji in selection]
        endings = [f"on a {colour} background" for colour in data.COLOURS]
        self.tables = [
            self.padded([*ids_of(subjects), []], device),
            self.padded([*ids_of([f"and {subject}" for subject in subjects]), []], device),
            self.padded([[*ids, *end] for ids in [*ids_of(endings), []]], device),
        ]
        self.first = torch.tensor([self.start], dtype=torch.int32, device=device)

    @staticmethod
    def padded(rows: list[list[int]], device: torch.device) -> torch.Tensor:
        """Rows of different lengths as one int32 table, -1 where there is nothing."""
        longest = max(map(len, rows))
        return torch.tensor(
            [row + [-1] * (longest - len(row)) for row in rows], dtype=torch.int32, device=device
        )

    def ids(self, captions: torch.Tensor) -> torch.Tensor:
        """Token ids ``(n, 24)``, int32, of captions ``(n, 3)``, as the tokenizer gives them."""
        parts = [table[captions[:, place]] for place, table in enumerate(self.tables)]
        row = torch.cat([self.first.expand(len(captions), -1), *parts], dim=1)
        there = row >= 0
        # Every token moves left over the empty places; those go to a last column that is cut off.
        places = torch.where(there, there.cumsum(dim=1) - 1, TOKENS).clamp(max=TOKENS)
        ids = torch.full((len(row), TOKENS + 1), self.padding, dtype=torch.int32, device=row.device)
        return ids.scatter(1, places, row)[:, :TOKENS].contiguous()
