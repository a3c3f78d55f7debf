"""T5 and T5 v1.1: buckets, logits, gradients and greedy answers of tiny models in transformers.

    python scripts/parity/t5.py        writes test/parity/t5.json
"""

import record
import torch
from by_rule import fill, gradients, numbers, pattern
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

SEED = 7
VOCAB = 37
SIZES = dict(
    vocab_size=VOCAB, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1,
    decoder_start_token_id=0, relative_attention_num_buckets=8, relative_attention_max_distance=12,
)


BEAMS = {
    "two": dict(num_beams=2),
    "four": dict(num_beams=4),
    "early": dict(num_beams=3, early_stopping=True),
    "long": dict(num_beams=4, length_penalty=2.0),
    "short": dict(num_beams=4, length_penalty=-1.5),
    "never": dict(num_beams=4, length_penalty=1.0, early_stopping="never"),
}


def search(model, source, mask, end, **options):
    made = model.generate(
        input_ids=source.long(), attention_mask=mask.long(), max_new_tokens=9, do_sample=False, eos_token_id=end,
        return_dict_in_generate=True, output_scores=True, **options,
    )
    return {
        "options": options,
        "answers": [[int(t) for t in row] for row in made.sequences[:, 1:]],
        "scores": made.sequences_scores,
    }


def run(make, config):
    torch.manual_seed(SEED)
    model = make(config).eval()
    if not config.untied:
        fill(model)
    else:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        fill(model)
    source = record.token_ids(SEED, VOCAB - 2, 3, 11) + 2
    mask = torch.ones(3, 11, dtype=torch.int32)
    mask[1, 7:] = 0
    mask[2, 4:] = 0
    source = torch.where(mask == 1, source, 0)
    target = record.token_ids(SEED + 1, VOCAB - 2, 3, 6) + 2
    target[:, 0] = 0
    outputs = model(
        input_ids=source.long(), attention_mask=mask.long(), decoder_input_ids=target.long(), use_cache=False
    )
    loss = (outputs.logits.flatten(0, 1) * pattern((18, VOCAB))).sum()
    loss.backward()
    with torch.no_grad():
        answers = model.generate(
            input_ids=source.long(), attention_mask=mask.long(), max_new_tokens=12, num_beams=1, do_sample=False
        )
        # Random weights hardly ever end an answer: another token that they like ends it here.
        ends = answers[:, 1:].flatten().tolist()
        end = max(sorted(set(ends) - {0, 1}), key=ends.count)
        beams = {name: search(model, source, mask, end, **options) for name, options in BEAMS.items()}
    written = config.to_diff_dict()
    written["architectures"] = [make.__name__]
    written.pop("transformers_version", None)
    written.pop("untied", None)
    return {
        "config": {k: written[k] for k in sorted(written)},
        "inputs": {"source": source.int(), "mask": mask, "target": target.int()},
        "logits": outputs.logits.detach(),
        "encoded": outputs.encoder_last_hidden_state.detach()[mask.bool()],
        "loss": loss.item(),
        "gradients": gradients(model),
        "answers": [[int(t) for t in row] for row in answers[:, 1:]],
        "beams": {"end": end, "searches": beams},
    }


def buckets():
    offsets = torch.arange(-300, 301)
    return {
        "both": T5Attention._relative_position_bucket(offsets, True, 32, 128).int(),
        "past": T5Attention._relative_position_bucket(offsets, False, 32, 128).int(),
        "bothSmall": T5Attention._relative_position_bucket(offsets, True, 8, 12).int(),
        "pastSmall": T5Attention._relative_position_bucket(offsets, False, 8, 12).int(),
    }


cases = {}
for name, make, config, untied in [
    ("t5", T5ForConditionalGeneration, T5Config(**SIZES), False),
    ("t5-v1.1", T5ForConditionalGeneration,
     T5Config(**SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False), True),
    ("mt5", MT5ForConditionalGeneration, MT5Config(**SIZES), True),
]:
    config.untied = untied
    cases[name] = run(make, config)
record.write("t5", SEED, {"buckets": buckets(), "cases": cases}, modules=["transformers"],
             note="weights by scripts/parity/by_rule.py")
