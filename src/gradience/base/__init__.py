"""Read a base model's files: find them, identify the base, and read its weights one at a time.

Only safetensors are read, with numpy: without torch, without the model's code, and never the whole model in memory.
"""
