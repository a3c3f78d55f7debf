"""gpt2-train: transformers' GPT2LMHeadModel, tiny, five AdamW steps; hf-gpt2/: the same weights as a model folder."""

import torch
from record import ADAMW, next_token_loss, save_folder, seed_weights, token_ids, train, weights, write
from transformers import GPT2Config, GPT2LMHeadModel, GenerationConfig

SEED = 1
CONFIG = dict(
    vocab_size=33, n_positions=16, n_embd=8, n_layer=2, n_head=2, n_inner=32,
    activation_function="gelu_new", layer_norm_epsilon=1e-5,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=True,
    bos_token_id=0, eos_token_id=0,
)
NAMES = ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.weight"]


def build() -> GPT2LMHeadModel:
    model = GPT2LMHeadModel(GPT2Config(**CONFIG, attn_implementation="eager")).float()
    seed_weights(model, SEED)
    return model.eval()


def main() -> None:
    model = build()
    ids = token_ids(SEED, CONFIG["vocab_size"], 2, 9)
    initial = weights(model)
    save_folder(model, "hf-gpt2", GenerationConfig(bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        logits = model(ids[:, :-1].long()).logits
    body = {
        "config": CONFIG,
        "weights": initial,
        "inputs": {"ids": ids},
        "logits": logits,
        **train(model, lambda m: next_token_loss(m(ids[:, :-1].long()).logits, ids), ADAMW, NAMES, NAMES),
    }
    write("gpt2-train", SEED, body, ["transformers"], note=(
        "inputs ids[:, :-1], targets ids[:, 1:], mean cross-entropy; lm_head is tied to wte and not listed; "
        "the key part of c_attn.bias has an exactly zero gradient, so AdamW moves it by rounding noise: do not compare it"
    ))


if __name__ == "__main__":
    main()
