"""Reinforcement learning of the policy: rollouts, objectives, curriculum, trainer."""
