"""The conformance kit: plays the gateway against any agent and says which rules of the relay protocol it keeps."""
