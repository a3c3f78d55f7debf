"""gguf-tokenizer.json: a small SentencePiece vocabulary as GGUF files hold it, and the ids that SentencePiece gives.

BPE with bytes for unknown characters and a space before each text, as Llama 2 has it, trained on the sources of
this folder; and the same without that space, as Gemma has it.
"""

import io
from pathlib import Path

import record  # first: it moves this folder back in sys.path

import sentencepiece as spm

TEXTS = [
    "Hello, world! 12345 it's",
    "  two spaces,\ttab\n\nnewlines  ",
    "the tensors of the model are written",
    "Žluťoučký kůň, 日本語, 🙂 — fin.",
    "",
    " ",
    "import torch\n\n\ndef main() -> None:\n    return x",
    "▁ marks and <0x41> and <s> stay text",
]
CORPUS = ["record.py", "gpt2-train.py", "peft-lora.py", "optim.py"]


def trained(prefix: bool) -> spm.SentencePieceProcessor:
    lines = [line for name in CORPUS for line in (Path(__file__).parent / name).read_text().splitlines()]
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=460, byte_fallback=True,
        add_dummy_prefix=prefix, remove_extra_whitespaces=False, normalization_rule_name="identity",
        split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1,
    )
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


def kind(sp: spm.SentencePieceProcessor, i: int) -> int:
    """llama.cpp's token types, as its converter sets them."""
    return 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1


def main() -> None:
    cases = []
    for prefix in (True, False):
        sp = trained(prefix)
        ids = range(sp.vocab_size())
        cases.append({
            "addSpacePrefix": prefix,
            "tokens": [sp.id_to_piece(i) for i in ids],
            "scores": [int(sp.get_score(i)) for i in ids],
            "types": [kind(sp, i) for i in ids],
            "bos": sp.bos_id(), "eos": sp.eos_id(), "unknown": sp.unk_id(),
            "encoded": [{"text": t, "ids": sp.encode(t), "decoded": sp.decode(sp.encode(t))} for t in TEXTS],
        })
    record.write("gguf-tokenizer", 0, {"cases": cases}, modules=("sentencepiece",))


main()
