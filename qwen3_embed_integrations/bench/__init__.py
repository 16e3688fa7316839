"""The command `qwen3-embed bench`: this package and the tools that users would pick instead, side by side."""
