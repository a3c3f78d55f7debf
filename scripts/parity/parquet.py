"""Writes small Parquet files, as pyarrow makes them, and what they hold: test/parity/parquet.json.

Run: python scripts/parity/parquet.py > test/parity/parquet.json
Needs pyarrow. Files are base64 inside the JSON.
"""

import base64
import io
import json

import pyarrow
import pyarrow.parquet as pq

PAIRS = [
    {"question": f"What is {i} + {i}?", "answer": str(2 * i), "id": i, "score": i / 4}
    for i in range(12)
]
CHATS = [
    {
        "conversations": [
            {"from": "human", "value": f"größe {i} 🙂"},
            {"from": "gpt", "value": "x" * i},
        ]
    }
    for i in range(3)
]
# As `datasets` stores a Sequence of a dict: lists inside a struct.
COLUMNS = [{"conversations": {"from": ["human", "gpt"], "value": ["u", "a"]}}]
MESSAGES = [
    {
        "prompt": "p",
        "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}],
        "rejected": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}],
        "note": None,
    }
]


def written(rows, **options):
    table = pyarrow.Table.from_pylist(rows)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_statistics=False, store_schema=False, **options)
    return {"base64": base64.b64encode(buffer.getvalue()).decode(), "rows": rows}


files = {
    codec: written(PAIRS, compression=codec, row_group_size=5)
    for codec in ["none", "snappy", "gzip", "zstd", "brotli", "lz4"]
}
files["pages-v2"] = written(
    PAIRS, compression="zstd", data_page_version="2.0", use_dictionary=False
)
files["delta"] = written(
    PAIRS,
    compression="snappy",
    use_dictionary=False,
    column_encoding={"question": "DELTA_BYTE_ARRAY", "id": "DELTA_BINARY_PACKED"},
)
files["chats"] = written(CHATS, compression="snappy")
files["columns"] = written(COLUMNS, compression="snappy")
files["preferences"] = written(MESSAGES, compression="snappy")

print(
    json.dumps(
        {"source": f"pyarrow {pyarrow.__version__}", "files": files},
        ensure_ascii=False,
        separators=(",", ":"),
    )
)
