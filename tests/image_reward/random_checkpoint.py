"""Write an ImageReward with random weights, in its real shape, and a small BERT tokenizer.

    python random_checkpoint.py FOLDER

It runs in the environment of envs/imagereward.txt. The score that the package itself gives an image
of FOLDER/image.png for the prompt "a red apple" is printed.
"""

import json
import os
import string
import sys

import torch
from PIL import Image

# BLIP's text encoder, as the published med_config.json has it.
MED_CONFIG = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
    "type_vocab_size": 2, "vocab_size": 30524, "encoder_width": 768, "add_cross_attention": True,
}  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main() -> None:
    os.chdir(sys.argv[1])
    os.environ["HF_HUB_OFFLINE"] = "1"
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    os.makedirs("bert-base-uncased", exist_ok=True)
    with open("bert-base-uncased/vocab.txt", "w") as file:
        file.write("\n".join([*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]))
    with open("med_config.json", "w") as file:
        json.dump(MED_CONFIG, file)

    import ImageReward

    torch.manual_seed(0)
    model = ImageReward.ImageReward("med_config.json").eval()
    for weights in model.mlp.parameters():
        torch.nn.init.normal_(weights, std=0.1)  # with its own, no image makes a difference
    torch.save(model.state_dict(), "ImageReward.pt")
    with torch.no_grad():
        print("score:", repr(model.score("a red apple", Image.open("image.png"))))


if __name__ == "__main__":
    main()
