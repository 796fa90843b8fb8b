"""Breaking the glass: in an emergency, one patient's record at one unit, for hours, with a reason, under review."""
