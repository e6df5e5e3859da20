"""The model that the trainings of these tests begin with."""

from policy_fixtures import backbone as backbone
