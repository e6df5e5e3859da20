"""The rows of every study of a profile, as a table, without a run."""

import pandas as pd

from zs_lib import config, studies


def study_rows(profile: config.Profile) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"study": study, "label": label, "arm": arm.name}
            for study in studies.STUDIES
            for label, arm in studies.study_arms(profile, study).items()
        ]
    )


TINY = config.load_profile("tiny")
ROWS = study_rows(TINY)
