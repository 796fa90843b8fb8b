"""OpenAPI: what an audience may call, made of the configuration and the units' own documents; and the way back."""
