"""Records what huggingface_hub makes of the example repository in its cache: every folder, file and link.

python scripts/parity/hub-cache.py            writes test/parity/hub-cache.json
python scripts/parity/hub-cache.py --both     also reads, offline, a cache that plasticity has filled, and
                                              lets plasticity read, offline, the one that Python has filled
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[2]
serve = """
import { HubMirror, exampleName, exampleRepo } from "./test/support/hub-mirror.ts";
const mirror = await HubMirror.open();
mirror.repos.set(exampleName, exampleRepo(100000));
console.log(mirror.url);
process.stdin.resume().on("end", () => mirror.close());
"""
needed = ["config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json"]


def listing(cache: Path) -> dict:
    """Path -> link target, or text of small files, or size; folders end in a slash."""
    found = {}
    for path in sorted(cache.rglob("*")):
        name = str(path.relative_to(cache))
        if name.startswith(".locks/models--org--example/"):
            continue
        if path.is_symlink():
            found[name] = {"link": os.readlink(path)}
        elif path.is_dir():
            found[name + "/"] = {}
        elif path.stat().st_size < 5000 and "/blobs/" not in name:
            found[name] = {"text": path.read_text()}
        else:
            found[name] = {"bytes": path.stat().st_size}
    return found


scratch = root / ".cache" / "t" / "hub"
scratch.mkdir(parents=True, exist_ok=True)
(scratch / "serve.mts").write_text(serve.replace('"./test', f'"{root}/test'))
server = subprocess.Popen(
    ["npx", "tsx", str(scratch / "serve.mts")], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
try:
    endpoint = server.stdout.readline().strip()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(HF_ENDPOINT=endpoint, HF_HOME=f"{folder}/home", HF_HUB_DISABLE_PROGRESS_BARS="1")
        os.environ.pop("HF_HUB_CACHE", None)
        import huggingface_hub
        from huggingface_hub import scan_cache_dir, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError

        cache = Path(folder) / "python"
        snapshot_download("org/example", allow_patterns=needed, cache_dir=cache)
        snapshot_download("org/example", revision="refs/pr/1", allow_patterns=needed, cache_dir=cache)
        try:
            huggingface_hub.hf_hub_download("org/example", "missing.json", cache_dir=cache)
        except EntryNotFoundError:
            pass
        fixture = {"huggingface_hub": huggingface_hub.__version__, "entries": listing(cache)}
        text = json.dumps(fixture, indent=1, ensure_ascii=False)
        (root / "test/parity/hub-cache.json").write_text(text + "\n")
        print(len(fixture["entries"]), "entries")
        if "--both" in sys.argv:
            ours = Path(folder) / "ours"
            cli = ["node", str(root / "dist/cli/main.js"), "download", "--json", "--cache-dir"]
            subprocess.run([*cli, str(ours), "org/example"], check=True, capture_output=True)
            subprocess.run([*cli, str(ours), "org/example@refs/pr/1"], check=True, capture_output=True)
            gone = subprocess.run([*cli, str(ours), "org/example:missing.json"], capture_output=True, text=True)
            print(gone.stderr.strip())
            print("same listing:", listing(ours) == fixture["entries"])
            for revision in ["main", "refs/pr/1"]:
                found = snapshot_download(
                    "org/example", revision=revision, allow_patterns=needed, cache_dir=ours, local_files_only=True
                )
                print("python reads ours:", found.removeprefix(folder))
            info = scan_cache_dir(ours)
            print("scan:", [(r.repo_id, len(r.revisions), r.size_on_disk) for r in info.repos], info.warnings)
            theirs = subprocess.run(
                [*cli, str(cache), "org/example@refs/pr/1", "--offline"], check=True, capture_output=True, text=True
            )
            print("ours reads python's:", json.loads(theirs.stdout)["folder"].removeprefix(folder))
            server.stdin.close()
            server.wait(10)
finally:
    server.kill()
