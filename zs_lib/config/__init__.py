"""What is trained and measured, as frozen dataclasses: arms, and profiles that state their values."""

from zs_lib.config.profile import Profile, Resources, Share, load_profile, profiles
