"""What a computer needs to run a policy: how long a prediction takes there, and what works on it."""
