"""State dicts in and out: safe reading, safetensors, the released layout and the Keras family. Needs no network."""

from cmtvision.weights.files import read_state_dict, write_safetensors
from cmtvision.weights.official import from_official, is_official, to_official

__all__ = ["from_official", "is_official", "read_state_dict", "to_official", "write_safetensors"]
