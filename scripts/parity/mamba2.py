"""mamba2: as mamba.py, of transformers' Mamba2ForCausalLM.

    python scripts/parity/mamba2.py                 writes test/parity/mamba2.json
    python scripts/parity/mamba2.py check FOLDER    reads a saved folder and prints how far its logits are off
"""

import record  # noqa: F401  first: it moves this folder back in sys.path
from mamba import main

MAMBA2 = dict(model_type="mamba2", vocab_size=23, hidden_size=12, state_size=4, num_hidden_layers=2, num_heads=4,
              head_dim=6, n_groups=2, chunk_size=4)
CASES = {
    "plain": dict(MAMBA2),
    "biased": dict(MAMBA2, use_bias=True, use_conv_bias=False, conv_kernel=3, n_groups=1, time_step_limit=[0.5, 0.75],
                   tie_word_embeddings=True, layer_norm_epsilon=1e-3),
}

if __name__ == "__main__":
    main("mamba2", CASES, 340, ["in_proj"])
