"""tensorboard: records as TensorBoard's own writer makes them; and a reader of event files, as a check.

    python scripts/parity/tensorboard.py                 writes test/parity/tensorboard.json
    python scripts/parity/tensorboard.py <folder>        prints what TensorBoard's EventAccumulator reads there
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from record import write  # first: it moves this folder back in sys.path

from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_ndarray

EVENTS = [
    {"wallTime": 1700000000.5, "step": 0, "scalars": {"train/loss": 2.5}},
    {"wallTime": 1700000001.25, "step": 1, "scalars": {"train/loss": 1.1, "train/lr": 0.001}},
    {"wallTime": 1700000002.0, "step": 300, "scalars": {"held-out/loss": -0.0}},
    {"wallTime": 1700000003.0, "step": 70000, "texts": {"note": "**α** is 16, line\nbreak"}},
    {"wallTime": 1700000004.0, "step": 2**53 - 1, "scalars": {"tiny": 1e-30, "x" * 200: 3e38}},
]
START = {"wallTime": 1700000005.0, "step": 301}


def text_value(tag: str, text: str):
    return summary_pb2.Summary.Value(
        tag=tag,
        metadata=summary_pb2.SummaryMetadata(plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text")),
        tensor=tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            string_val=[text.encode()],
            tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
        ),
    )


def proto(event: dict):
    values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in event.get("scalars", {}).items()]
    values += [text_value(tag, text) for tag, text in event.get("texts", {}).items()]
    return event_pb2.Event(wall_time=event["wallTime"], step=event["step"], summary=summary_pb2.Summary(value=values))


def records(path: Path) -> list[bytes]:
    """The framed records of a file, by their lengths alone."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        end = at + 16 + int.from_bytes(data[at : at + 8], "little")
        found.append(data[at:end])
        at = end
    return found


def record() -> None:
    time.time = lambda: START["wallTime"]  # the writer stamps its first record
    with tempfile.TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        for event in EVENTS:
            writer.add_event(proto(event))
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        writer.add_event(event_pb2.Event(wall_time=START["wallTime"], step=START["step"], session_log=session))
        writer.close()
        (path,) = Path(folder).iterdir()
        found = records(path)
    write("tensorboard", 0, {
        "version": {"wallTime": START["wallTime"], "record": found[0].hex()},
        "events": [{**event, "record": raw.hex()} for event, raw in zip(EVENTS, found[1:])],
        "start": {**START, "record": found[-1].hex()},
    }, ["tensorboard"], note="records are hexadecimal, with length and sums, as tensorboard's EventFileWriter wrote them")


def show(folder: str) -> None:
    found = EventAccumulator(folder, size_guidance={TENSORS: 0, "scalars": 0})
    found.Reload()
    result = {"scalars": {}, "texts": {}}
    for tag in sorted(found.Tags()["scalars"]):
        result["scalars"][tag] = [[e.step, e.value, e.wall_time] for e in found.Scalars(tag)]
    for tag in sorted(found.Tags()["tensors"]):
        result["texts"][tag] = [[e.step, make_ndarray(e.tensor_proto).item().decode()] for e in found.Tensors(tag)]
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    show(sys.argv[1]) if len(sys.argv) > 1 else record()
