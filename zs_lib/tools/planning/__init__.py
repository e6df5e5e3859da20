"""What a study takes on other hardware, and what saturates first."""
