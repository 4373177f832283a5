"""Imported by the zygote of the trainers: what each program would make first, and always the same."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

# A thousand regular expressions, which the first save of a model compiles.
get_checkpoint_conversion_mapping("bert")
