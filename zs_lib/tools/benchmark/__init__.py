"""The embedded benchmark's facts, their wording, and the files of `data/benchmark` made from them."""
