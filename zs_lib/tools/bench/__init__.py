"""Speed beside other people's code."""
