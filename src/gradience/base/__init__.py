"""The base model's files to arrays: where they are, which base they are, and its weights one at a time.

Reads safetensors only, with numpy: no torch, no code of the model, never the whole of it in memory.
"""
