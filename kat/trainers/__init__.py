"""The trainer protocol, the loop that every native stage shares, optimisers, schedules and the stages themselves."""
