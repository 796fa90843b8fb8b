"""The registry of units: registered keys, enrolment, revocation, and what became of each unit."""
