"""What both GPU backends share: a call as a table of stages."""
