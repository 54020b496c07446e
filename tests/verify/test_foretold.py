"""A server that loses a part of the adapter: which of the losses that are foretold of its engine is the case."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tables import every
from tiny_models import causal, saved, write_texts

from gradience.cli.main import main
from gradience.models import load_model
from gradience.models.inputs import ModelInput
from gradience.models.reading import as_base, read_loaded
from gradience.models.states import adapted, scaled, without
from gradience.verbs.receipt.run import make_receipt, write_receipt

RANK = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, an adapter of rsLoRA on q_proj and down_proj, its receipt, and both in memory."""
    folder = tmp_path_factory.mktemp("foretold")
    llama = saved(
        causal(), folder, r=RANK, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    held = make_receipt(llama.adapter, llama.base, prompts=write_texts(folder / "rows.txt", 40))
    write_receipt(held, folder / "receipt.json", sources=[])
    return llama, folder / "receipt.json", load_model(llama.base, llama.adapter)


class Server(BaseHTTPRequestHandler):
    """OpenAI's completions with vLLM's `prompt_logprobs`, of a model in a state."""

    def do_GET(self) -> None:
        held = self.server.held
        models = {"data": [{"id": "m", "owned_by": held["owner"]}]}
        self._send({"/v1/models": models, "/version": {"version": held["version"]}}.get(self.path))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self._send(None)
            return
        ids = asked["prompt"]
        row = self.server.held["read"](ModelInput(tuple(ids), 0, len(ids) - 1))
        tables = [None, *({str(one): {"logprob": float(p)}} for one, p in zip(ids[1:], row, strict=True))]
        self._send({"choices": [{"prompt_logprobs": tables}], "usage": {"prompt_tokens": len(ids)}})

    def _send(self, body: object) -> None:
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body or {}).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def served(made):
    """A function that gives the address of a server of the adapter after a mistake."""
    _, _, loaded = made
    layers = adapted(loaded)
    states = {
        "base": lambda: as_base(loaded),
        "plain scale": lambda: scaled(layers, RANK**-0.5),
        "half": lambda: scaled(layers, 0.5),
        "no MLP": lambda: without(layers, [name for name in layers if "down_proj" in name]),
        "no q_proj": lambda: without(layers, [name for name in layers if "q_proj" in name]),
        "whole": lambda: without(layers, []),
    }
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

        def start(state, owner, version="0.28.0"):
            def read(row):
                return read_loaded(loaded, [row], state=states[state]())[0]

            server.held = {"owner": owner, "version": version, "read": read}
            return f"http://127.0.0.1:{server.server_port}"

        yield start
        server.shutdown()


UNNAMED = "vLLM leaves out modules that --lora-target-modules does not name: "
THREAD = "(https://github.com/vllm-project/vllm/issues/55193)"
SCALED = "SGLang misreads use_rslora: the scale is lora_alpha / r whatever use_rslora says: sqrt(r) times too small"
NOTHING = "foretells this of the adapter (gradience check --serve "
ONLY = "--lora-target-modules o_proj"
Q = "--lora-target-modules q_proj"


@every(
    ("state", "owner", "given", "verdict", "engine", "begins", "ends"),
    [
        ("base", "vllm", [], "the_base", "vllm@0.28.0", "Nothing that is known of vLLM ", f"{NOTHING}vllm@0.28.0)"),
        ("base", "vllm", ["--server-flags", ONLY], "the_base", "vllm@0.28.0", f"Foretold: {UNNAMED}", THREAD),
        ("base", "vllm", ["--server-flags", Q], "the_base", "vllm@0.28.0", f"Foretold: {UNNAMED}",
         f"{THREAD}. Nothing of the 2 other modules shows on these rows either"),
        ("no MLP", "vllm", ["--server-flags", Q], "part_missing", "vllm@0.28.0", f"Foretold: {UNNAMED}", THREAD),
        ("no q_proj", "vllm", ["--server-flags", Q], "part_missing", "vllm@0.28.0", "Nothing ", "vllm@0.28.0)"),
        ("plain scale", "sglang", [], "wrong_scale", "sglang", f"Foretold: {SCALED}", "issues/40835)"),
        ("half", "sglang", [], "wrong_scale", "sglang", f"Foretold is another scale, 0.354 of its own: {SCALED}", ")"),
        ("plain scale", "org", ["--serve", "tensorrt@0.10"], "wrong_scale", "tensorrt@0.10",
         "Foretold: TensorRT-LLM misreads use_rslora", "issues/1668)"),
        ("base", "x", ["--serve", "mlx@0.31.3"], "the_base", "mlx@0.31.3", "Foretold: MLX-LM leaves out every adapter",
         "issues/1745)"),
        ("base", "vllm", ["--server-flags", "--max-lora-rank 1"], "the_base", "vllm@0.28.0",
         "Foretold is a refusal, so the adapter may not be loaded at all: vLLM refuses rank 8", "config/lora.py)"),
        ("base", "vllm", ["--serve", "vllm@99"], "the_base", "vllm@99", "What is known of vLLM was read of ", "of 99"),
    ],
)  # fmt: skip
def test_the_loss_that_is_the_case_is_named(state, owner, given, verdict, engine, begins, ends, made, served, capsys):
    llama, receipt, _ = made
    files = ["--receipt", str(receipt), "--base", str(llama.base), "--adapter", str(llama.adapter)]
    assert main(["verify", served(state, owner), *files, *given, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["engine"]) == (verdict, engine)
    assert report["cause"].startswith(begins), report["cause"]
    assert report["cause"].endswith(ends), report["cause"]
    (finding,) = report["findings"]
    assert finding["message"] == f"{report['story']}. {report['cause']}"


def test_what_is_served_whole_and_what_does_not_say_its_engine(made, served, capsys):
    llama, receipt, _ = made
    files = ["--receipt", str(receipt), "--base", str(llama.base), "--adapter", str(llama.adapter)]
    assert main(["verify", served("whole", "vllm"), *files]) == 0
    assert "Foretold" not in capsys.readouterr().out
    for owner, asked in (("org", True), ("vllm", False)):
        assert main(["verify", served("base", owner), *files]) == 1
        told = " ".join(capsys.readouterr().out.split())
        assert ("The server does not say which engine it is: --serve ENGINE@VERSION" in told) is asked
        assert ("vllm@0.28.0" in told) is not asked
    assert main(["verify", served("base", "vllm", version="<b>"), *files, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["engine"] == "vllm"  # a version is no text of any kind


STARTED = """
import http.server, json, sys
held = {tuple(row["ids"]): row["base"] for row in json.load(open(sys.argv[1]))["rows"]}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self._send({"data": [{"id": "m", "owned_by": "vllm"}]})
    def do_POST(self):
        ids = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        row = held[tuple(ids)]
        tables = [{str(one): {"logprob": p}} for one, p in zip(ids[-len(row):], row)]
        self._send({"choices": [{"prompt_logprobs": [None] * (len(ids) - len(row)) + tables}]})
    def _send(self, body):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(body).encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def test_of_a_command_its_own_flags_are_judged(made, tmp_path, capsys):
    llama, receipt, _ = made
    (tmp_path / "server.py").write_text(STARTED)
    asked = ["--receipt", str(receipt), "--base", str(llama.base), "--json"]
    adapter = ["--adapter", str(llama.adapter)]
    without = "--adapter and --base tell whether the server's engine is known to do this to the adapter."
    for flags, given, cause in (
        (Q, adapter, f"Foretold: {UNNAMED}"),
        (Q, [*adapter, "--server-flags", "--max-lora-rank 8"], "Nothing that is known of vLLM foretells"),
        ("", adapter, "Nothing that is known of vLLM foretells"),
        (Q, [], None),
    ):
        command = f"{sys.executable} {tmp_path / 'server.py'} {receipt} {{port}} {flags}"
        assert main(["verify", command, *asked, *given]) == 1
        report = json.loads(capsys.readouterr().out)
        assert report["verdict"] == "the_base"
        assert (without in report["notes"]) is (cause is None)
        assert (report["cause"] or "").startswith(cause or "")


@every(
    ("given", "said"),
    [
        (["--serve", "tgi"], "not judged: no engine is called tgi"),
        (["--serve", "vllm,sglang"], "--serve names 2 engines, and one serves"),
        (["--server-flags", "--a 'b", "--serve", "vllm"], "--server-flags: No closing quotation"),
        (["--serve", "vllm", "--adapter", ""], "--serve is of a server and of the adapter that it serves"),
    ],
)
def test_an_engine_that_cannot_be_judged_is_refused(given, said, made, served, capsys):
    llama, receipt, _ = made
    argv = ["verify", served("base", "vllm"), "--receipt", str(receipt), "--base", str(llama.base)]
    adapter = [] if "" in given else ["--adapter", str(llama.adapter)]
    assert main([*argv, *adapter, *(one for one in given if one and one != "--adapter")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert main(["verify", str(llama.base), "--receipt", str(receipt), "--serve", "vllm"]) == 2
