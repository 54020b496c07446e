"""Real engines, each where it is installed: llama.cpp's server, `transformers serve`, and the program `vllm`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch

from gradience.verbs.receipt.run import make_receipt, verify_served, write_receipt


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny Llama on bytes with an adapter, its receipt, and GGUF files of the merge and of the base."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from written_gguf import write_gguf

    folder = tmp_path_factory.mktemp("engines")
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, [("h", "e")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")  # noqa: S106  # no secrets
    fast.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(alphabet), bos_token_id=0, eos_token_id=1, **sizes, **heads))
    model.save_pretrained(folder / "base")
    write_gguf(model, folder / "base", folder / "base.gguf", "f16")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    adapted.save_pretrained(folder / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    fast.save_pretrained(folder / "merged")
    write_gguf(merged, folder / "base", folder / "merged.gguf", "f16")
    (folder / "rows.txt").write_text("\n".join(f"the number {i} is {i * i} when squared" for i in range(24)))
    held = make_receipt(folder / "adapter", folder / "base", prompts=folder / "rows.txt")
    write_receipt(held, folder / "receipt.json", sources=[])
    return folder


@pytest.mark.oracle("gguf")
@pytest.mark.slow  # starts a server
def test_llama_cpps_server_is_asked_token_by_token(files):
    xllamacpp = import_module("xllamacpp")
    for name, verdict in (("merged", "same"), ("base", "the_base")):
        params = xllamacpp.CommonParams()
        params.model.path = str(files / f"{name}.gguf")
        params.n_ctx, params.port, params.warmup = 256, 0, False
        # Threads that wait for each other at every step take minutes where another process has a core.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        server = xllamacpp.Server(params)
        found = verify_served(files / "receipt.json", server.listening_address)
        assert (found.verdict, found.kind) == (verdict, "endpoint"), found.story
        assert "token by token" in found.how
        assert found.compared >= 0.7 * found.of  # those among the tokens that the server names
        assert len(found.notes) == 1 + (verdict != "same")  # tokens were compared; parts were not tried
        assert f"{found.of - found.compared} of {found.of} log-probabilities are not compared" in found.notes[0]


@pytest.mark.oracle("gguf")
@pytest.mark.slow  # starts a server
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of that server's packages
def test_transformers_serve_gives_no_log_probabilities_and_that_is_said(files):
    pytest.importorskip("openai", reason="needs transformers[serving]")
    from transformers.cli.serve import Serve

    model = str(files / "base")
    serve = Serve(model, port=0, device="cpu", dtype="float32", non_blocking=True, log_level="critical")
    try:
        while not serve.server.started:
            time.sleep(0.01)
        port = serve.server.servers[0].sockets[0].getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        found = verify_served(files / "receipt.json", address, base=files / "base", model=model)
    finally:
        serve.kill_server()
    assert (found.verdict, found.compared) == ("cannot_tell", 0)
    for way in ("prompt_logprobs:", "echo with logprobs:", "logprobs token by token:"):
        assert way in found.story
    assert any("serve that by an engine that gives them" in note for note in found.notes)


@contextmanager
def by_vllm(model, log, *options):
    """The address of vLLM, which serves a folder under its name."""
    if (program := shutil.which("vllm")) is None:
        pytest.skip("needs vLLM: the program `vllm`, of this environment or another")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = f"--host 127.0.0.1 --port {port} --dtype float32 --max-model-len 256 --enforce-eager"
    command = [program, "serve", str(model), *common.split(), "--served-model-name", model.name, *options]
    alone = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with (
        log.open("wb") as written,
        subprocess.Popen(command, stdout=written, stderr=written, env=os.environ | alone) as run,
    ):  # the program is what is tested
        try:
            while run.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models"):  # on the loopback
                        break
                except OSError:
                    time.sleep(0.5)
            assert run.poll() is None, log.read_text()[-2000:]
            yield f"http://127.0.0.1:{port}"
        finally:
            run.terminate()


@pytest.fixture(scope="module")
def vllm(files, tmp_path_factory):
    """The address of vLLM, which serves the base and the adapter by name."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with by_vllm(files / "base", log, "--enable-lora", "--lora-modules", f"adapter={files / 'adapter'}") as address:
        yield address


@pytest.mark.oracle("gguf")
def test_vllm_gives_log_probabilities_of_the_prompt(files, vllm):
    for model, verdict in (("adapter", "same"), ("base", "the_base")):
        found = verify_served(files / "receipt.json", vllm, model=model)
        assert (found.verdict, found.how) == (verdict, "prompt_logprobs of /v1/completions"), found.story
        assert found.compared == found.of
        assert len(found.notes) == (verdict != "same")  # tokens and template were compared; parts were not tried


@pytest.mark.oracle("gguf")
def test_a_merged_model_that_vllm_serves_is_the_adapter(files, tmp_path):
    with by_vllm(files / "merged", tmp_path / "log") as address:
        found = verify_served(files / "receipt.json", address)
    assert (found.verdict, found.how) == ("same", "prompt_logprobs of /v1/completions"), found.story
    assert (found.compared, found.notes) == (found.of, [])
