"""A caller's program as mypy reads it: it takes the first half, and finds in the second the errors that are ignored."""

import gradience as g

g.audit_adapter("peft", base="llama", suggest_per_layer=True, options=g.AuditOptions(seed=1))
g.check_config("config.json", peft_dir="peft", serve=["vllm"])
g.check_data("rows.jsonl", loss="all", samples="all", peft_dir="peft")
g.diagnose("runs/toy", gap_threshold=1.4)
g.write_report("runs/toy", "out.md", compare=["other"])
g.audit_pytree({}, scale=2.0, top_singular_values=3)

g.audit_adapter("peft", bose="llama")  # type: ignore[call-arg]
g.audit_adapter("peft", intruder_k="ten")  # type: ignore[arg-type]
g.check_config(peft_dri="peft")  # type: ignore[call-arg]
g.check_data("rows.jsonl", loss="every")  # type: ignore[arg-type]
g.diagnose("runs/toy", gap_threshold="1.4")  # type: ignore[arg-type]
g.write_report("runs/toy", "out.md", compare=3)  # type: ignore[arg-type]
g.audit_pytree({}, top_singular_value=3)  # type: ignore[call-arg]
