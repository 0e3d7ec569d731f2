"""Where a result came from: manifests, the code it depends on, and checks of both."""
