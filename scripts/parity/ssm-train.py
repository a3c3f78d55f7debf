"""ssm-train: transformers' MambaForCausalLM and Mamba2ForCausalLM, tiny, plain PyTorch paths, five AdamW steps each."""

import torch
from record import ADAMW, next_token_loss, seed_weights, token_ids, train, weights, write
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

SEED = 10
SPEC = {**ADAMW, "lr": 3e-3}
MAMBA = dict(
    vocab_size=29, hidden_size=8, state_size=4, num_hidden_layers=2, conv_kernel=4, expand=2, time_step_rank=2,
    use_bias=False, use_conv_bias=True, hidden_act="silu", layer_norm_epsilon=1e-5, residual_in_fp32=False,
    tie_word_embeddings=True, use_mambapy=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)
MAMBA2 = dict(
    vocab_size=29, hidden_size=8, state_size=4, num_hidden_layers=2, conv_kernel=4, expand=2, num_heads=4, head_dim=4,
    n_groups=2, chunk_size=4, use_bias=False, use_conv_bias=True, hidden_act="silu", layer_norm_epsilon=1e-5,
    rms_norm=True, residual_in_fp32=False, tie_word_embeddings=True, time_step_limit=[0.0, 1e9],
    bos_token_id=0, eos_token_id=0, pad_token_id=0,
)


def record(cls, config_cls, config, seed, gradients, final) -> dict:
    torch.manual_seed(seed)
    model = cls(config_cls(**config)).float()
    model.keep_init = ("A_log", "D", "dt_bias", "dt_proj.bias")
    seed_weights(model, seed)
    model.train()
    ids = token_ids(seed, config["vocab_size"], 2, 11)
    inputs = ids[:, :-1].long()
    initial = weights(model)
    with torch.no_grad():
        logits = model(inputs, use_cache=False).logits
    return {
        "config": config,
        "weights": initial,
        "inputs": {"ids": ids},
        "logits": logits,
        **train(model, lambda m: next_token_loss(m(inputs, use_cache=False).logits, ids), SPEC, gradients, final),
    }


def main() -> None:
    at = "backbone.layers.0.mixer."
    mamba = record(MambaForCausalLM, MambaConfig, MAMBA, SEED,
                   ["backbone.embeddings.weight", at + "A_log", at + "x_proj.weight"],
                   [at + "in_proj.weight", at + "A_log", at + "conv1d.weight"])
    mamba2 = record(Mamba2ForCausalLM, Mamba2Config, MAMBA2, SEED + 1,
                    ["backbone.embeddings.weight", at + "A_log", at + "dt_bias"],
                    [at + "in_proj.weight", at + "A_log", at + "conv1d.weight"])
    write("ssm-train", SEED, {"mamba": mamba, "mamba2": mamba2}, ["transformers"], note=(
        "inputs ids[:, :-1] (T 10), targets ids[:, 1:]; lm_head is tied to the embeddings and not listed; "
        "A_log, D and the step-size biases keep transformers' start"
    ))


if __name__ == "__main__":
    main()
