"""The rows of every study of the tiny profile, as a table, without a run."""

import pandas as pd

from zs_lib import config, studies

TINY = config.load_profile("tiny")
ROWS = pd.DataFrame(
    [
        {"study": study, "label": label, "arm": arm.name}
        for study in studies.STUDIES
        for label, arm in studies.study_arms(TINY, study).items()
    ]
)
