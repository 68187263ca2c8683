"""export.py --push against a stand-in of the hub's interface: what arrives there, and that errors are one line."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from rllr.files import write_json, write_jsonl

PROGRAM = Path(__file__).resolve().parents[2] / "workflow" / "scripts" / "export.py"
TOKEN = "hf_notatokenatallbutlooksthesame00000"


class Hub(BaseHTTPRequestHandler):
    """Creates repositories and takes commits; every file is sent within its commit."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert self.headers["authorization"] == f"Bearer {TOKEN}"
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            if self.server.refuses:
                return self.answer({"error": "You don't have the rights to create it"}, 403)
            return self.answer({"url": f"{self.own()}/{repository(json.loads(body))}"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.server.committed.append(self.path)
            return self.answer(
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": self.own() + self.path.replace("/api/models", "").replace("/api", ""),
                }
            )
        return self.answer({"errors": [], "warnings": []})  # of the card's header

    def own(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def do_GET(self):
        if self.server.refuses:
            return self.answer({"error": "Repository not found"}, 404)
        return self.answer({"id": "owner/name", "sha": "0" * 40, "siblings": [], "private": self.server.private})

    def answer(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def repository(created: dict) -> str:
    """Its place on the hub."""
    kind = "datasets/" if created.get("type") == "dataset" else ""
    return f"{kind}{created['organization']}/{created['name']}"


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.files, server.committed, server.refuses, server.private = [], {}, [], False, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(hub, folder, *more, token=TOKEN, name="owner/name"):
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": token,
        "HF_HOME": str(folder.parent / "home"),
    }  # fmt: skip
    command = [sys.executable, PROGRAM, "--push", name, folder, *more]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def method(tmp_path):
    """A method's folder with all that a card is made of."""
    folder = tmp_path / "m" / "rllr"
    task = {"kind": "label", "labels": ["yes", "no"], "input": "{text}", "answer": "x"}
    value = {"metric": "accuracy", "value": 0.5, "ci95": [0.4, 0.6], "n": 9, "unparsed": 0}
    metrics = {"model": "m", "method": "rllr", "data": "d", "n": 9, "score": 0.5, "tasks": {"a": value}}
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "model.json", {"max_new_tokens": 7, "instructions": {"a": "Is it?"}, "tasks": {"a": task}})
    (folder / "config.yaml").write_text("seed: 1\n")
    origin = {"id": "base/model", "licence": "MIT", "revision": "main", "parameters": 7e9}
    write_json(folder.parent / "base" / "origin.json", origin)
    write_json(folder.parent / "base" / "config.json", {"model_type": "llama"})
    write_json(folder / "adapter" / "adapter_config.json", {"r": 4})
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_nothing_goes_into_a_repository_that_is_public_already(hub, method):
    hub.private = False
    done = push(hub, method / "adapter")
    assert done.returncode == 1 and not hub.committed
    assert done.stderr.splitlines()[-1].endswith("this repository is public; add --public, or give another name")
    assert push(hub, method / "adapter", "--public").returncode == 0 and hub.committed


def header(hub) -> dict:
    return yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])


def test_a_model_folder_goes_as_it_is(hub, tmp_path):
    folder = tmp_path / "model"
    write_json(folder / "config.json", {})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "model.safetensors").write_bytes(b"\0weights")
    done = push(hub, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"http://127.0.0.1:{hub.server_port}/owner/name\n"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    (created,) = hub.created
    assert (created["name"], created["organization"]) == ("name", "owner")
    assert created.get("private") is True or created.get("visibility") == "private"
    assert TOKEN not in done.stdout + done.stderr


def test_an_adapter_goes_with_a_card_that_says_where_it_belongs(hub, method):
    assert push(hub, method / "adapter", "--public").returncode == 0
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert (header(hub)["library_name"], header(hub)["base_model"]) == ("peft", "base/model")
    text = hub.files["README.md"].decode()
    assert "It belongs on the merged sft_wrat model" in text and "PeftModel.from_pretrained" in text
    assert "AutoModelForCausalLM" not in text and "| a | accuracy | 50.0 |" in text and "    seed: 1" in text
    assert hub.created[0].get("private") is False or hub.created[0].get("visibility") == "public"


def test_of_data_the_pairs_go_and_nothing_that_they_are_made_from(hub, tmp_path):
    folder = tmp_path / "mine"
    write_json(folder / "tasks.json", {"a": {"kind": "label", "labels": ["yes", "no"]}})
    (folder / "config.yaml").write_text("files: /home/me/secret.csv\n")
    row = {"id": "1", "task": "a", "instruction": "?", "input": "x", "label": "yes", "output": ["y", "n"]}
    write_jsonl(folder / "rllr_reward_train.jsonl", [row, {**row, "id": "2"}])
    write_jsonl(folder / "label_sensitive_pairs_for_test.jsonl", [row])
    write_jsonl(folder / "rlhf_reward_train.jsonl", [])
    write_jsonl(folder / "test.jsonl", [row])
    assert push(hub, folder).returncode == 0
    assert set(hub.files) == {"README.md", "rllr_reward_train.jsonl", "label_sensitive_pairs_for_test.jsonl"}
    assert hub.created[0]["type"] == "dataset" and hub.committed == ["/api/datasets/owner/name/commit/main"]
    (config,) = header(hub)["configs"]
    assert config["config_name"] == "label_sensitive"
    assert {f["split"]: f["path"] for f in config["data_files"]} == {
        "train": "rllr_reward_train.jsonl",
        "test": "label_sensitive_pairs_for_test.jsonl",
    }
    assert "| label_sensitive | train | a | 2 |" in hub.files["README.md"].decode()


@pytest.mark.parametrize(
    "change, told",
    [
        ({"name": "noowner"}, "expected owner/name"),
        ({"token": ""}, "nobody is logged in to the hub"),
        ({"refuses": True}, "403"),
        ({"folder": "logs"}, "found none of their files"),
    ],
)
def test_errors_are_one_line(hub, method, change, told):
    hub.refuses = change.pop("refuses", False)
    (method / "logs").mkdir()
    done = push(hub, method / change.pop("folder", "adapter"), **change)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and told in done.stderr
    assert done.stderr.count("\n") == 1 and TOKEN not in done.stderr
    assert not hub.files
