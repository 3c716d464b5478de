"""The backend's data path: a guest's rings, served from an image."""
