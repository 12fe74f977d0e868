"""A backend's lanes: how many, opened, warmed and proven, and others in their place."""
