"""Judgement: pure functions from schema Structs to findings. Every threshold carries its source."""
