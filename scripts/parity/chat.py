"""Records what transformers' apply_chat_template gives: ids, and the assistant's mask by {% generation %}.

Run: python scripts/parity/chat.py > test/parity/chat.json

Holds two tiny tokenizers (byte-level; SentencePiece-like with byte fallback),
published templates as they are, and the same templates with {% generation %} around what the
assistant says, which is where transformers takes the mask from. Needs transformers and tokenizers.
"""

import json

import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "You are a helpful assistant. Answer the question in one word.",
    "What is the capital of France? Paris is the capital of France.",
    "Write a line of code that adds two numbers. The answer is a + b.",
]


def byte_level(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def sentencepiece_like():
    """As Llama 2's: every text begins with ▁, unknown characters become bytes."""
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    trained.train_from_iterator([" " + text for text in TEXT * 4], trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [token for token in model["vocab"] if token not in tokens]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return tokenizer


CHATML_HEAD = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
CHATML_FOOT = (
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_FOOT = (
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\nANSWER\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}ANSWER{% endif %}{% endfor %}"
)

# name, tokenizer, roles of tokens, template, the same with {% generation %}
TEMPLATES = [
    (
        "chatml",
        "bytes",
        {"eos_token": "<|im_end|>"},
        CHATML_HEAD + "{{ message['content'] + '<|im_end|>' + '\n'}}" + CHATML_FOOT,
        CHATML_HEAD
        + "{% if message['role'] == 'assistant' %}{% generation %}"
        + "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        + "{% else %}{{ message['content'] + '<|im_end|>' + '\n'}}{% endif %}"
        + CHATML_FOOT,
    ),
    (
        "llama3",
        "bytes",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        "+ message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}" + LLAMA3_FOOT,
        "{% for message in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{% if message['role'] == 'assistant' %}\n    {%- generation -%}\n"
        "    {{ message['content'] | trim + '<|eot_id|>' }}\n    {%- endgeneration -%}\n"
        "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}" + LLAMA3_FOOT,
    ),
    (
        "zephyr",
        "pieces",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ZEPHYR.replace("ANSWER", "{{ '<|assistant|>\n'  + message['content'] + eos_token }}"),
        ZEPHYR.replace(
            "ANSWER",
            "{{ '<|assistant|>\n' }}{% generation %}{{ message['content'] + eos_token }}"
            "{% endgeneration %}\n",
        ),
    ),
    (
        "llama2",
        "pieces",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        LLAMA2.replace("ANSWER", "{{ ' '  + message['content'].strip() + ' ' + eos_token }}"),
        LLAMA2.replace(
            "ANSWER",
            "{% generation %}{{ ' '  + message['content'].strip() + ' ' + eos_token }}"
            "{% endgeneration %}",
        ),
    ),
]

CHATS = [
    [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris"},
    ],
    [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "  Adds two numbers\n"},
        {"role": "assistant", "content": " a + b\n\nis the answer. "},
        {"role": "user", "content": "Größe? 日本 🙂"},
        {"role": "assistant", "content": "Größe: ½"},
    ],
]


def main():
    made = {
        "bytes": byte_level(
            [
                "<|begin_of_text|>",
                "<|start_header_id|>",
                "<|end_header_id|>",
                "<|eot_id|>",
                "<|im_start|>",
                "<|im_end|>",
            ]
        ),
        "pieces": sentencepiece_like(),
    }
    cases = []
    for name, kind, roles, template, generation in TEMPLATES:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made[kind], **roles)
        chats = []
        for messages in CHATS:
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
            ids = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=True, return_dict=True
            )["input_ids"]
            out = tokenizer.apply_chat_template(
                messages,
                chat_template=generation,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            assert out["input_ids"] == ids, name
            prompt = tokenizer.apply_chat_template(
                messages[:-1],
                chat_template=template,
                tokenize=True,
                return_dict=True,
                add_generation_prompt=True,
            )["input_ids"]
            chats.append(
                {
                    "messages": messages,
                    "text": text,
                    "ids": ids,
                    "mask": out["assistant_masks"],
                    "prompt": prompt,
                }
            )
        cases.append(
            {
                "name": name,
                "tokenizer": kind,
                "roles": roles,
                "template": template,
                "generation": generation,
                "chats": chats,
            }
        )
    versions = f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}"
    result = {
        "source": versions,
        "tokenizers": {name: json.loads(own.to_str()) for name, own in made.items()},
        "cases": cases,
    }
    print(json.dumps(result, ensure_ascii=False, separators=(",", ":")))


main()
