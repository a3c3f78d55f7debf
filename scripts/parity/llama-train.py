"""llama-train: transformers' LlamaForCausalLM, tiny, GQA and tied embeddings, five clipped AdamW steps and a
greedy continuation; a second untied model with llama3 rope scaling (logits only); hf-llama/: the first as a folder."""

import torch
from record import ADAMW, next_token_loss, save_folder, seed_weights, token_ids, train, weights, write
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

SEED = 2
CONFIG = dict(
    vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=4, hidden_act="silu",
    max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=True,
    attention_bias=False, mlp_bias=False, attention_dropout=0.0,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    bos_token_id=0, eos_token_id=None, pad_token_id=None,
)
# head_dim 8: wavelengths 6.3, 167, 4443 and 118 144 against 2048 and 8192, so every branch of the rule is used
SCALED = dict(
    vocab_size=29, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, head_dim=8, hidden_act="silu",
    max_position_embeddings=131072, rms_norm_eps=1e-6, tie_word_embeddings=False,
    attention_bias=False, mlp_bias=False, attention_dropout=0.0,
    rope_parameters={
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
    bos_token_id=0, eos_token_id=None, pad_token_id=None,
)
CLIP = 0.5
GRADIENTS = ["model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.input_layernorm.weight"]
FINAL = ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"]


def build(config=CONFIG, seed=SEED) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).float()
    seed_weights(model, seed, digits=2)
    return model.eval()


@torch.no_grad()
def greedy(model, prompt: torch.Tensor, n: int) -> torch.Tensor:
    ids = prompt.long()
    gaps = []
    for _ in range(n):
        last = model(ids, use_cache=False).logits[:, -1]
        top = last.topk(2).values
        gaps.append((top[:, 0] - top[:, 1]).min().item())
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
    print(f"  smallest gap between the best and the second token: {min(gaps):.3f}")
    return ids[:, prompt.shape[1]:]


def scaled_record() -> dict:
    model = build(SCALED, SEED + 1)
    ids = token_ids(SEED + 1, SCALED["vocab_size"], 2, 8)
    positions = torch.tensor([[0, 1, 50, 200, 900, 2500, 6000, 12000]])
    with torch.no_grad():
        return {
            "config": SCALED,
            "weights": weights(model),
            "inputs": {"ids": ids},
            "inverseFrequencies": model.model.rotary_emb.inv_freq,
            "logits": model(ids.long()).logits,
            "spread": {"positionIds": positions, "logits": model(ids[:1].long(), position_ids=positions).logits},
        }


def main() -> None:
    model = build()
    ids = token_ids(SEED, CONFIG["vocab_size"], 2, 9)
    prompt = token_ids(SEED + 10, CONFIG["vocab_size"], 1, 4)
    initial = weights(model)
    save_folder(model, "hf-llama", GenerationConfig(bos_token_id=0))
    with torch.no_grad():
        logits = model(ids[:, :-1].long()).logits
    continuation = greedy(model, prompt, 8)
    cached = model.generate(prompt.long(), max_new_tokens=8, do_sample=False)[:, 4:]
    assert torch.equal(continuation, cached), "uncached and cached greedy differ"
    body = {
        "config": CONFIG,
        "weights": initial,
        "inputs": {"ids": ids},
        "logits": logits,
        "greedy": {"prompt": prompt, "tokens": continuation.int()},
        **train(model, lambda m: next_token_loss(m(ids[:, :-1].long()).logits, ids), ADAMW, GRADIENTS, FINAL, clip=CLIP),
        "untiedScaled": scaled_record(),
    }
    write("llama-train", SEED, body, ["transformers"], note=(
        "inputs ids[:, :-1], targets ids[:, 1:], mean cross-entropy; lm_head is tied to embed_tokens and not listed; "
        "gradients are before clipping; greedy is the untrained model, each step over the whole sequence; "
        "transformers 5 writes rope_parameters where older configs say rope_theta and rope_scaling"
    ))


if __name__ == "__main__":
    main()
